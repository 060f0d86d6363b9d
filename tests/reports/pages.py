"""Reports of a comparison and a run as tests make them, and an HTML page read strictly."""

from html.parser import HTMLParser

from qtool.reports.comparisons import Arm, Comparison, Difference
from qtool.reports.pages.evidence import Evidence, TrialShown
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
