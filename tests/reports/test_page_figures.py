"""Figures of pages and papers: where their marks stand."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from qtool.errors import InputError
from qtool.reports.comparisons import Equivalence
from qtool.reports.pages import papers
from qtool.reports.pages.comparison import seed_rows
from qtool.reports.pages.costs import Cost, cheapest
from qtool.reports.pages.dots import seed_dots
from qtool.reports.pages.drawing import for_page, refuse_unless_drawable, write_figure
from qtool.reports.pages.figures import shortened
from qtool.reports.pages.lines import spread
from qtool.reports.pages.papers import figure_of
from tests.reports.pages import comparison

GOLDEN = Path(__file__).parent.parent / "golden" / "results"


def test_dots_of_seeds_stand_as_far_apart_as_their_values() -> None:
    rows = seed_rows(comparison())
    svg = for_page(*seed_dots(rows, wide=True), "x")
    uses = [
        (float(x), float(y)) for x, y in re.findall(r'<use[^>]* x="([\d.]+)" y="([\d.]+)"', svg)
    ]
    by_height: dict[float, list[float]] = {}
    for x, y in uses:
        by_height.setdefault(y, []).append(x)
    (a, b), (c, d, _) = [by_height[y] for y in sorted(by_height)][:2]  # above the ticks
    unit = (b - a) / 2
    assert c - a == pytest.approx(10 * unit, rel=1e-3)
    assert d - c == pytest.approx(4 * unit, rel=1e-3)


def test_an_arm_is_in_colour_only_where_it_is_certain() -> None:
    result = comparison()
    assert [row.standing for row in seed_rows(result)] == ["first", "better"]
    open_ = result.differences[0].model_copy(update={"low": -0.01})
    result = result.model_copy(update={"differences": [open_]})
    assert [row.standing for row in seed_rows(result)] == ["first", "open"]


def test_nothing_that_is_joined_is_beaten_in_both() -> None:
    found = [Cost("a", 1, 0.5), Cost("b", 2, 0.4), Cost("c", 3, 0.6), Cost("d", 3, 0.55)]
    assert [one.name for one in cheapest(found)] == ["a", "c"]


def test_names_are_moved_apart_and_stay_in_order() -> None:
    moved = spread([10.0, 11.0, 12.0, 90.0], 15, 0, 100)
    assert all(b - a >= 14.9 for a, b in pairwise(moved))
    assert moved[0] >= 0
    assert moved[3] == pytest.approx(90)


def test_a_long_name_keeps_its_end() -> None:
    assert shortened("runs/digits/model.onnx", 100).endswith("/model.onnx")
    assert shortened("short", 100) == "short"


@pytest.mark.parametrize(
    ("ending", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")]
)
def test_a_paper_s_figure_is_what_its_name_says_and_the_same_each_time(
    ending, start, tmp_path
) -> None:
    made = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{ending}"
        write_figure(*figure_of(comparison()), path)
        made.append(path.read_bytes())
    assert made[0].startswith(start)
    assert made[0] == made[1]


def test_a_figure_of_another_kind_is_refused_before_any_work(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no figure; give a name that ends in \.pdf"):
        refuse_unless_drawable(tmp_path / "x.jpg")


def test_a_paper_s_figure_is_of_what_the_comparison_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All seeds; of runs what they cost; of an equivalence its errors over learning rates."""
    drawn = list[object]()

    def record(what: str) -> None:
        monkeypatch.setattr(papers, what, lambda *given, **_: drawn.append((what, given[0])))

    for what in ("seed_dots", "costs"):
        record(what)
    result = comparison()
    figure_of(result)
    runs = result.model_copy(update={"kind": "runs"})
    figure_of(runs)  # which differ in nothing
    priced = [arm.model_copy(update={"bytes": 1000 * (k + 1)}) for k, arm in enumerate(runs.arms)]
    figure_of(runs.model_copy(update={"arms": priced}))
    rows = seed_rows(result)
    sizes = [Cost("straight_through", 0.001, 0.51), Cost("better_one", 0.002, 0.62)]
    assert drawn == [("seed_dots", rows), ("seed_dots", rows), ("costs", sizes)]

    equivalence = Equivalence.read(GOLDEN / "equivalence.json")
    svg = for_page(*figure_of(equivalence), "e")
    assert "error of aligned weights" in svg
    assert all(f">{arm}<" in svg for arm in ("mapped", "naive", "jitter"))
