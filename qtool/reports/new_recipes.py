"""What `qtool init` prints; quick to load."""

from pydantic import Field

from qtool.reports.result import Result


class NewRecipe(Result):
    """A recipe that was written."""

    recipe: str
    """The file."""
    made_from: str
    """Name of a recipe that ships, or the folder of images."""
    model: str = ""
    weights: str = ""
    image_size: int = 0
    classes: list[str] = Field(default_factory=list)
    """In the order of labels."""
    training_images: int = 0
    validation_images: int = 0
    bad_files: list[str] = Field(default_factory=list)
    """That cannot be read as images, and are left out."""
    notes: list[str] = Field(default_factory=list)
    """What else was found."""


def show_new_recipe(result: NewRecipe) -> None:
    """Say what was found, what was written, and how to go on."""
    from qtool.console import say

    for note in result.notes:
        say(note, on_stdout=True)
    if result.model:
        halves = f"{result.training_images:,} to train on, {result.validation_images:,} to judge by"
        say(f"images: {halves}", on_stdout=True)
        weights = "from nothing" if result.weights == "none" else f"from weights {result.weights}"
        say(f"{result.model} {weights}, {result.image_size} pixels", on_stdout=True)
    say(f"wrote {result.recipe}", on_stdout=True)
    say(f"next: qtool check {result.recipe}; qtool run {result.recipe}", on_stdout=True)
