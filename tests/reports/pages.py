"""Reports of a comparison and a run as tests make them, and an HTML page read strictly."""

import re
from html.parser import HTMLParser

from qtool.reports.comparisons import Arm, Comparison, Difference
from qtool.reports.layer_figures import LayerFigures
from qtool.reports.pages.confusion import confusion
from qtool.reports.pages.evidence import Evidence, TrialShown
from qtool.reports.pages.run import RunReport
from qtool.reports.results import EpochLine, Summary

HOSTILE = '<script>alert("1")</script><img src="https://evil.example/x.png">\x1b[2J'
INLINE = {"em", "b", "span", "code", "wbr"}
VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}


def line(epoch: int, accuracy: float | None, loss: float = 0.5) -> EpochLine:
    return EpochLine.model_validate(
        {
            "epoch": epoch,
            "step": 20 * epoch,
            "train_loss": loss,
            "train_accuracy": 0.5,
            "learning_rate": 0.01,
            "flip_ratio": {"conv1": 0.002, "fc": 0.001},
            "oscillation_frequency": {"conv1": 0.0004, "fc": 0.0},
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "seconds": 1.5,
        }
    )


def summary(accuracy: float | None, **more: object) -> Summary:
    said: dict[str, object] = {
        "status": "finished",
        "run": "run",
        "epochs": 2,
        "seconds": 3.0,
        "parameters": 1234,
        "weight_bits_mean": 4.0,
        "validation_accuracy": accuracy,
        "validation_loss": 0.25,
        "train_accuracy": 0.5,
        "train_loss": 0.5,
    }
    return Summary.model_validate(said | more)


def comparison(name: str = "better_one") -> Comparison:
    """Return two arms on two seeds; the second is better for certain."""
    return Comparison(
        kind="estimators",
        recipe="recipes/digits.yaml",
        seeds=[0, 1],
        arms=[
            Arm(name="straight_through", values=[0.5, 0.52], mean=0.51, std=0.014, failed=0),
            Arm(name=name, values=[0.6, 0.64], mean=0.62, std=0.028, failed=0),
        ],
        differences=[
            Difference(
                arm=name, against="straight_through", mean=0.11, low=0.05, high=0.17, pairs=2
            )
        ],
        verdict=f"{name} is better.",
        on="weights",
    )


def evidence(result: Comparison) -> Evidence:
    """Return two epochs of each trial of a comparison."""
    trials = [
        TrialShown(
            arm.name,
            seed,
            summary(value),
            [line(1, (value or 0.0) / 2), line(2, value)],
        )
        for arm in result.arms
        for seed, value in zip(result.seeds, arm.values, strict=True)
    ]
    recipes = {arm.name: f"seed: 0\nestimator: {arm.name}\n" for arm in result.arms}
    return Evidence(trials, recipes, {"torch": "2"}, "qtool compare estimators r.yaml")


class Page(HTMLParser):
    """A page whose elements all close, in order; what its attributes and texts say.

    Attributes:
        tags: every element with its attributes, in order.
        text: all there is to read.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in INLINE:
            self.texts.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())
        if tag not in INLINE:
            self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def closed(html: str) -> Page:
    """Read a page; check that it can fetch nothing, run nothing and follow nothing."""
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not {"src", "srcset", "action", "data"} & {key for _, a in page.tags for key in a}
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert all(value.startswith("#") for value in page.attributes("href"))
    markup = re.sub(r">[^<]*<", "><", html)
    assert not re.search(r"https?:|//|@import", re.sub(r'"[^"]*"', '""', markup))
    assert not re.search(r"url\((?!#)", html)
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    return page


def a_run(name: str = "runs/x", **more: object) -> RunReport:
    said: dict[str, object] = {
        "name": name,
        "model": "lenet5",
        "data": "digits",
        "epochs": 2,
        "recipe": "seed: 0\n",
        "summary": summary(0.75, health=[{"layer": name, "kind": "few_codes", "says": name}]),
        "history": [line(1, 0.5), line(2, 0.75, 0.25)],
        "images": 4,
        "confusion": confusion([0, 0, 1, 1], [0, 1, 1, 1], ["zero", name]),
        "layers": [
            LayerFigures(
                layer=name,
                shape=[4, 1, 3, 3],
                weight_bits=4,
                input_bits=8,
                levels_used=7,
                levels=15,
                saturated=0.125,
                sqnr=14.75,
                weight_scale=(0.25, 0.5),
                input_scale=(0.5, 0.5),
                flip_ratio=[0.25, 0.002],
                oscillation_frequency=[0.5, 0.003],
            )
        ],
    }
    return RunReport(**{**said, **more})  # pyright: ignore[reportArgumentType] tests name all
