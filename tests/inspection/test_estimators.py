"""The gallery of estimators: every one of them, described and drawn, and nothing fetched."""

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from qtool.inspection.estimators import describe, pictures
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.straight_through_map import straight_through_map
from qtool.reports.figures import thinned, ticks
from tests.kit import as_json, refused, shell

KEPT = Path(__file__).parents[2] / ".github" / "estimators"
OWN = [name for name in ESTIMATORS.names() if ":" not in name]
SVG = "{http://www.w3.org/2000/svg}"
NUMBER = re.compile(r"\d+\.?\d*|\.\d+")
POLYLINE = re.compile(r'points="([^"]*)"')
Point = tuple[float, float]


@pytest.fixture(scope="module", autouse=True)
def only_qtool_s_own():
    """Other tests leave users' estimators in the registry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ESTIMATORS, "_members", {name: ESTIMATORS[name] for name in OWN})
        yield


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return pictures([describe(name) for name in OWN])


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    """A function that runs `qtool inspect estimators` in an empty folder; returns its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*argv: str) -> str:
        code, out, err = shell("inspect", "estimators", *argv)
        assert (code, err) == (0, "")
        return out

    return run


class Page(HTMLParser):
    """What a page holds; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_table_has_every_estimator_once(gallery):
    shown = gallery()

    assert re.findall(r"^│ (\w+) ", shown, flags=re.MULTILINE) == OWN
    for name in OWN:
        assert describe(name).formula in shown


@pytest.mark.parametrize("name", OWN)
def test_every_estimator_says_its_formula_and_its_reference(name):
    entry = describe(name)

    assert entry.formula.startswith("g_u = g")
    assert entry.formula == entry.formula_lines[0]
    assert entry.reference.endswith(".")
    assert entry.summary.endswith(".")


def test_json_says_it_all_and_holds_no_nan(gallery):
    result = as_json(gallery("--json"))
    entries = {entry["name"]: entry for entry in result["estimators"]}

    assert set(result) == {"kind", "estimators"}
    assert result["kind"] == "estimators"
    assert list(entries) == OWN
    assert entries["position_based"]["parameters"] == {"slope": 4.0, "epsilon": 0.01}
    assert entries["position_based"]["may_be_scheduled"] == []
    assert entries["hyperbolic_tangent"]["may_be_scheduled"] == ["sharpness"]
    assert entries["swish_sign"]["alpha"] is None
    families = {name: entries[name]["family"] for name in ("identity", "relu", "rectified")}
    assert families == {"identity": "any grid", "relu": "ReLU", "rectified": "sign, two levels"}


@pytest.mark.parametrize("name", OWN)
def test_the_class_is_that_of_the_map(name):
    entry, found = describe(name), straight_through_map(name)

    assert (entry.in_class, entry.reason) == (found.in_class, found.reason)
    assert entry.alpha == (None if math.isnan(found.alpha) else found.alpha)
    assert (entry.lower, entry.upper) == (found.lower, found.upper)


def test_bounds_are_judged_apart():
    assert describe("straight_through").in_class
    assert not describe("straight_through").in_class_with_bounds
    assert "outside the grid" in describe("straight_through").reason_with_bounds
    assert describe("magnitude_aware").in_class_with_bounds


def test_the_page_is_whole_and_fetches_nothing(gallery):
    result = as_json(gallery("--output", "gallery.html", "--json"))
    text = Path("gallery.html").read_text()
    page = Page(text)

    assert result["output"] == "gallery.html"
    assert len(text) < 400_000
    assert page.tags.count("svg") == 3 * len(OWN)  # side by side, or below each other on a phone
    assert [value for key, value in page.attributes if key == "id"] == OWN
    assert {"script", "link", "img", "image", "use", "iframe"}.isdisjoint(page.tags)
    assert [key for key, _ in page.attributes if key in ("src", "style", "xlink:href")] == []
    assert "@import" not in text
    assert "url(" not in text
    for name in OWN:
        formula = "\n".join(describe(name).formula_lines)
        assert formula in page.words[page.words.index(name) :]


def test_a_folder_gets_a_small_picture_of_each(gallery):
    shown = gallery("--output", "new/pictures")
    files = {path.name: path.read_text() for path in Path("new/pictures").iterdir()}

    assert "drawn into new/pictures" in shown
    assert sorted(files) == sorted(f"{name}.svg" for name in OWN)
    for text in files.values():
        assert len(text.encode()) < 12_000
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert root.find(f"{SVG}rect").get("class") == "card"
        assert not {"src", "href"} & {key for item in root.iter() for key in item.attrib}


def test_the_derivative_of_straight_through_is_a_step(drawn):
    root = ElementTree.fromstring(drawn["straight_through.svg"])
    points = next(
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in root.iter(f"{SVG}polyline")
        if line.get("class") == "backward"
    )
    # the axes say what a pixel stands for: labels of this panel, by what they are anchored to
    left, right = points[0][0], points[-1][0]
    labels = [item for item in root.iter(f"{SVG}text") if item.get("class") == "tick"]
    across = {
        item.text: float(item.get("x"))
        for item in labels
        if item.get("text-anchor") == "middle" and left <= float(item.get("x")) <= right
    }
    down = {
        item.text: float(item.get("y"))
        for item in labels
        if item.get("text-anchor") == "end" and 0 < left - float(item.get("x")) < 10
    }
    unit = (across["3"] - across["\u22123"]) / 6
    values = [
        ((x - across["0"]) / unit, (down["0"] - 4 - y) / (down["0"] - down["1"])) for x, y in points
    ]

    expected = [(-3.5, 0), (-2, 0), (-2, 1), (2, 1), (2, 0), (3.5, 0)]
    torch.testing.assert_close(torch.tensor(values), torch.tensor(expected), atol=0.01, rtol=0)


def vertices(points: str) -> list[Point]:
    pairs = (pair.split(",") for pair in points.split())
    return [(float(x), float(y)) for x, y in pairs]


def distance(point: Point, line: list[Point]) -> float:
    """Return how far a point is from the nearest place of a line."""
    nearest = math.inf
    for (x0, y0), (x1, y1) in pairwise(line):
        dx, dy = x1 - x0, y1 - y0
        square = dx * dx + dy * dy
        along = ((point[0] - x0) * dx + (point[1] - y0) * dy) / square if square else 0.0
        share = min(1.0, max(0.0, along))
        nearest = min(nearest, math.dist(point, (x0 + share * dx, y0 + share * dy)))
    return nearest


def test_the_pictures_in_the_repository_are_current(drawn):
    again = "run: qtool inspect estimators --output .github/estimators"

    assert sorted(path.name for path in KEPT.iterdir()) == sorted(drawn), again
    for name, fresh in drawn.items():
        kept = (KEPT / name).read_text()
        # how many points a line needs may hang on the last digit, where it lies may not
        lines = [[vertices(points) for points in POLYLINE.findall(text)] for text in (kept, fresh)]
        for old, new in zip(*lines, strict=True):
            assert max(distance(point, old) for point in new) < 0.2, f"{name}; {again}"
            assert max(distance(point, new) for point in old) < 0.2, f"{name}; {again}"
        rest = [POLYLINE.sub("", text) for text in (kept, fresh)]
        assert NUMBER.sub("0", rest[0]) == NUMBER.sub("0", rest[1]), f"{name}; {again}"
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in rest]
        assert all(abs(old - new) < 0.2 for old, new in zip(*numbers, strict=True)), again


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["estimators", "--output", "gallery.png"], "give NAME.html or a folder"),
        (["estimators", "--output", "a/gallery.svg"], "give NAME.html or a folder"),
        (["estimators", "--output", "folder.html"], "give NAME.html or a folder"),
        (["estimators", "--output", "file"], "file is a file"),
        (["estimators", "--output", "file/in/it"], "file is a file"),
        (["estimators", "--output", "file/gallery.html"], "file is a file"),
        (["estimators", "--output", "x" * 300], "not the name of a folder"),
        (["r.yaml", "--output", "gallery.html"], "r.yaml: no such file or folder; give a run"),
        (
            ["estimatos", "--output", "gallery.html"],
            "estimatos: no such file or folder; give a run",
        ),
    ],
)
def test_a_wrong_output_is_refused_and_leaves_nothing_behind(argv, message, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("mine")

    assert message in refused(tmp_path, "inspect", *argv)


def test_a_file_of_that_name_is_inspected_itself(tmp_path):
    (tmp_path / "estimators").write_text("seed: [")

    assert "estimators" in refused(tmp_path, "inspect", "estimators")


def soft(grad, u, low, high):
    return grad * (1 + torch.cos(2 * math.pi * u)) * (low <= u) * (u <= high)


def broken(grad, u, low, high):
    raise ZeroDivisionError


def endless(grad, u, low, high, *, limit=math.inf):
    """Grow <b>without</b> bound.

    It has no formula & no reference.
    """
    return grad * 1e200 / (u - 0.5).clamp(min=0)


def flat(grad, u, low, high):
    return torch.ones(())


def needy(grad, u, low, high, *, power):
    return grad * u.abs() ** power


def test_a_user_s_estimators_are_shown_too(gallery, monkeypatch):
    mine = {f"mine.py:{f.__name__}": f for f in (soft, broken, endless, flat, needy)}
    monkeypatch.setattr(ESTIMATORS, "_members", mine)

    entries = {entry["name"]: entry for entry in as_json(gallery("--json"))["estimators"]}
    shown = gallery("--output", "pictures")
    gallery("--output", "gallery.html")
    page = Page(Path("gallery.html").read_text())

    assert list(entries) == list(mine)
    assert entries["mine.py:soft"]["formula"] == entries["mine.py:soft"]["reference"] == ""
    assert entries["mine.py:broken"]["reason"].endswith("ZeroDivisionError")
    assert entries["mine.py:endless"]["summary"] == "Grow <b>without</b> bound."
    assert entries["mine.py:endless"]["parameters"] == {"limit": "inf"}
    assert entries["mine.py:needy"]["parameters"] == {"power": None}
    assert not any(entry["in_class"] for entry in entries.values())
    assert all(name in shown for name in mine)
    assert page.tags.count("svg") == 3 * len(mine)
    assert "b" not in page.tags
    files = sorted(path.name for path in Path("pictures").iterdir())
    assert files == sorted(
        f"mine.py_{name}.svg" for name in ("soft", "broken", "endless", "flat", "needy")
    )
    for file in files:
        ElementTree.fromstring(Path("pictures", file).read_text())


def test_a_thinned_line_keeps_its_corners_and_its_ends():
    straight = [(float(x), 2.0 * x) for x in range(5)]
    corner = [*straight, (5.0, 8.0), (6.0, 8.0)]

    assert thinned(straight) == [(0.0, 0.0), (4.0, 8.0)]
    assert thinned(corner) == [(0.0, 0.0), (4.0, 8.0), (6.0, 8.0)]


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (-3.5, 3.5, 7, [-3, -2, -1, 0, 1, 2, 3]),
        (0.0, 1.188, 5, [0, 0.5, 1]),
        (0.0, 1e6, 5, [0, 500000, 1000000]),
        (-0.8, 5.4, 5, [0, 2, 4]),
    ],
)
def test_ticks_are_round_and_few(low, high, most, expected):
    assert ticks(low, high, most) == pytest.approx(expected)
