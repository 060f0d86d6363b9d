"""Pages in headless Chromium, as a phone and a desktop show them, light and dark."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")
pytest.importorskip("matplotlib")

from playwright import sync_api

from qtool import pipeline, uses
from qtool.comparison.report import Shown
from tests.kit import write_recipe

pytestmark = pytest.mark.slow

LONG = "an_arm_with_a_name_that_a_phone_has_no_room_for_in_one_line"
# What of a page reaches out of it, and what is too small to read.
LOOK = """() => {
  const SMALLEST = 11 - 0.01;  // pixels
  const width = document.documentElement.clientWidth;
  const out = [], small = [];
  const scrolls = (node) => {
    for (let up = node.parentElement; up; up = up.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(up).overflowX)) return true;
    return false;
  };
  if (document.documentElement.scrollWidth > width) out.push('the page');
  for (const node of document.querySelectorAll('body *')) {
    const box = node.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    if ((box.right > width + 1 || box.left < -1) && !scrolls(node)) out.push(node.outerHTML);
    const svg = node.closest('svg');
    const scale = svg ? svg.getScreenCTM().a : 1;
    const said = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const size = parseFloat(getComputedStyle(node).fontSize) * scale;
    if (said && size < SMALLEST) small.push([size, node.textContent]);
  }
  return {out, small};
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        try:
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a page of each kind, of trainings of two epochs."""
    folder = tmp_path_factory.mktemp("pages")
    recipe = write_recipe(folder, {"training.epochs": 2})
    run = folder / "run"
    pipeline.train(recipe, run_dir=run, device="cpu", report=True)
    pipeline.export(run)
    uses.draw(run, run / "exported.html")
    shown = Shown(page=True)
    pipeline.compare_estimators(
        recipe,
        given=["plain: training.epochs=2", f"{LONG}: training.learning_rate=0.02"],
        seeds=2,
        output=folder / "arms",
        device="cpu",
        shown=shown,
    )
    pipeline.compare_equivalence(
        write_recipe(
            folder,
            {
                "training.epochs": 2,
                "quantization.weights": {"bits": 2, "range": {"name": "he_uniform"}},
                "model.initialization": "he_uniform",
            },
        ),
        name="sinusoidal",
        rates=[0.02, 0.01],
        output=folder / "equivalence",
        device="cpu",
        shown=shown,
    )
    pipeline.compare_runs([run, run / "model.onnx"], output=folder / "runs", shown=shown)
    return {
        "run": run / "report.html",
        "exported": run / "exported.html",
        "arms": folder / "arms" / "report.html",
        "equivalence": folder / "equivalence" / "report.html",
        "runs": folder / "runs" / "report.html",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 800, 1240, 1400])
@pytest.mark.parametrize("kind", ["run", "exported", "arms", "equivalence", "runs"])
def test_a_page_fits_its_screen_asks_for_nothing_and_can_be_read(
    kind: str, width: int, scheme: str, chromium: Any, pages: dict[str, Path]
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, said, asked = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[kind].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    assert page.evaluate(LOOK) == {"out": [], "small": []}
    assert (said, asked) == ([], [pages[kind].as_uri()])
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 21)"
    assert dark == (scheme == "dark")
    if shots := os.environ.get("QTOOL_SHOTS"):  # to be looked at
        page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = false })")
        page.screenshot(path=f"{shots}/{kind}_{width}_{scheme}.png", full_page=True)
    context.close()


@pytest.mark.parametrize("width", [360, 390, 1240])
def test_the_gallery_of_estimators_fits_its_screen_and_can_be_read(
    width: int, chromium: Any, tmp_path: Path
) -> None:
    uses.inspect_estimators(output=tmp_path / "gallery.html")
    context = chromium.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto((tmp_path / "gallery.html").as_uri())
    assert page.evaluate(LOOK) == {"out": [], "small": []}
    context.close()
