"""A file for the web classifies images in a browser as the integer model does in Python.

Needs npm, which fetches onnxruntime-web from its registry, and a Chromium or Chrome.
"""

import functools
import json
import os
import shutil
import subprocess
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from qtool import pipeline
from qtool.export.proof.float_model import dequantized
from qtool.export.proof.latency import export_float
from qtool.runs.converted.integer import Integer

PAGE = Path(__file__).parent
PACKAGE = "onnxruntime-web@1.30"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
IMAGES = 100
SECONDS = 120  # until a page must have answered
RECIPE: dict[str, Any] = {
    "seed": 0,
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "image_size": 28},
    "quantization": {"weights": {"bits": 4}, "activations": {"bits": 4}},
    "training": {
        "epochs": 2,
        "optimizer": "adamw",
        "learning_rate": {"name": "cosine", "start": 4e-3, "stop": 0.0},
    },
}
Found = dict[str, Any]

pytestmark = pytest.mark.slow


class Served(SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what its pages post."""

    posted: "Queue[Found]"

    def do_POST(self) -> None:  # the name that http.server calls
        """Keep what was posted."""
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.put(json.loads(text))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Page:
    """The page, on a server of its own, beside onnxruntime-web and files."""

    def __init__(self, folder: Path, browser: str) -> None:
        self.folder, self.browser = folder, browser

    def found(self, model: str, images: str) -> Found:
        """Open the page in a browser; return what it posts."""
        posted: Queue[Found] = Queue()
        handler = type("Kept", (Served,), {"posted": posted})
        serve = functools.partial(handler, directory=str(self.folder))
        with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            host, port = server.server_address[:2]
            profile = self.folder / f"profile.{model}"
            options = ["--headless=new", "--disable-gpu", f"--user-data-dir={profile}"]
            if os.geteuid() == 0:  # a browser refuses its sandbox to root
                options.append("--no-sandbox")
            page = f"http://{host!s}:{port}/index.html?model={model}&images={images}"
            opened = subprocess.Popen(
                [self.browser, *options, page],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                return posted.get(timeout=SECONDS)
            except Empty:
                pytest.fail(f"the page said nothing for {SECONDS} s")
            finally:
                opened.terminate()
                opened.wait()
                server.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    npm = shutil.which("npm")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if npm is None or browser is None:
        pytest.skip("no npm, or no Chromium")
    folder = tmp_path_factory.mktemp("page")
    installed = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    if installed.returncode:
        pytest.skip(f"npm cannot install {PACKAGE}: {installed.stderr.strip()[:200]}")
    for name in ("index.html", "classify.js"):
        shutil.copy(PAGE / name, folder)
    (folder / "ort").symlink_to(folder / "node_modules" / "onnxruntime-web" / "dist")
    return Page(folder, browser)


@pytest.fixture(scope="module")
def digits(page: Page) -> tuple[nn.Module, Tensor]:
    """A trained network whose file and images lie beside the page, and the images."""
    recipe, run = page.folder / "digits.yaml", page.folder / "run"
    recipe.write_text(yaml.safe_dump(RECIPE))
    pipeline.train(recipe, run_dir=run, device="cpu")
    pipeline.export(run, output=page.folder / "digits.onnx", target="web")
    integer = Integer.open(run / "integer.safetensors")
    parts = [images for images, _ in integer.data.validation.batches(0)]
    images = torch.cat(parts)[:IMAGES]
    export_float(dequantized(integer.model), images[:1], page.folder / "float.onnx", 1)
    listed = [{"pixels": image.flatten().tolist()} for image in images]
    (page.folder / "images.json").write_text(json.dumps(listed))
    return integer.model, images


def test_a_browser_classifies_digits_as_python_does(
    page: Page, digits: tuple[nn.Module, Tensor]
) -> None:
    integer, images = digits
    with torch.no_grad():
        expected = integer(images)
    found, in_float = (page.found(name, "images.json") for name in ("digits.onnx", "float.onnx"))

    assert "error" not in found, found
    assert "error" not in in_float, in_float
    assert found["version"].startswith("1.30")
    assert found["classes"] == expected.argmax(1).tolist()
    assert len(set(found["classes"])) > 5  # it has learned something
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=1e-4, atol=1e-4)
    print(f"{found['median_ms']:.3f} ms an image, in float {in_float['median_ms']:.3f}")  # noqa: T201  # figures that are looked at, not checked


def test_a_page_whose_file_is_missing_says_so(page: Page, digits: tuple[nn.Module, Tensor]) -> None:
    assert "error" in page.found("no_such_file.onnx", "images.json")
