"""What `qtool predict --json` prints, and the same as a table; quick to load."""

from pydantic import Field

from qtool.reports.result import Result


class ClassShare(Result):
    """One class that an image may be of."""

    name: str
    index: int
    share: float
    """Of the softmax, 0..1."""


class PredictedImage(Result):
    """What a network says of one image."""

    file: str
    classes: list[ClassShare]
    """Best first."""


class FailedImage(Result):
    """An image that could not be read, or not be classified."""

    file: str
    why: str


class Prediction(Result):
    """What a network says of images."""

    model: str
    images: list[PredictedImage]
    failed: list[FailedImage] = Field(default_factory=list)
    """Absent where there are none."""


def show_prediction(result: Prediction) -> None:
    """Show the classes of every image."""
    from qtool.console import show, table

    rows = []
    for image in result.images:
        for rank, one in enumerate(image.classes):
            rows.append((one.name, f"{100 * one.share:.2f} %", "" if rank else image.file))
    if not rows:
        return  # what is said of the files that failed is all there is to say
    # the image last: paths are long, and are what gives way
    show(table(f"classes by {result.model}", ["class", "#share", "image"], rows), on_stdout=True)
