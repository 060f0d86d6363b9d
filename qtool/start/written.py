"""What was found in a folder, and what suits it, as a recipe with comments."""

import json
import re
from pathlib import Path

from qtool.console import printable
from qtool.files.whole import write_text
from qtool.files.yaml_data import parse_yaml
from qtool.recipe.recipe import Recipe
from qtool.reports.new_recipes import NewRecipe
from qtool.settings.section import check
from qtool.start.chosen import Chosen, choose
from qtool.start.looked import Looked, look_at, path_from
from qtool.start.shipped import refuse_to_overwrite

COLUMN = 32  # where comments begin
MOST_NAMED = 3  # files in a comment
PLAIN = re.compile(r"[\w./-]*[A-Za-z_/][\w./-]*")  # what YAML takes for text without quotes
SCALARS = {"null", "true", "false", "yes", "no", "on", "off"}  # but for these


def init(folder: Path, *, output: Path | None = None) -> NewRecipe:
    """Folder of images, all of them opened -> what suits them -> a recipe with comments.

    Raises:
        InputError: If the recipe is there already.
        DataError: If the folder holds no images of classes.
        WriteError: If the recipe cannot be written.
    """
    path = output or Path(f"{_name_of(folder)}.yaml")
    refuse_to_overwrite(path)
    looked = look_at(folder)
    chosen = choose(looked)
    text = recipe_text(looked, chosen, path)
    check(Recipe, parse_yaml(text), str(path))
    write_text(path, text)
    training, validation = looked.sizes
    return NewRecipe(
        recipe=str(path),
        made_from=str(folder),
        model=chosen.model,
        weights=chosen.weights,
        image_size=chosen.image_size,
        classes=list(looked.counts),
        training_images=training,
        validation_images=validation,
        bad_files=[str(bad) for bad in looked.bad],
        notes=looked.source.note.splitlines(),
    )


def _name_of(folder: Path) -> str:
    """Return what a recipe for a folder is called: as the folder, without what shells split at."""
    return re.sub(r"[^\w.-]+", "_", folder.resolve().name).strip("_.") or "recipe"


def recipe_text(looked: Looked, chosen: Chosen, path: Path) -> str:
    """Return the recipe that is to be written at a path."""
    training, validation = looked.sizes
    counts = looked.counts.items()
    classes = ", ".join(f"{name} ({count:,})" for name, count in counts)
    head = [
        f"{training + validation:,} images of {len(looked.counts)} classes in {looked.folder}: "
        f"{training:,} to train on, {validation:,} to judge by.",
        "",
        f"  qtool check {path}    # what it will take: memory, size, time; trains nothing",
        f"  qtool run {path}      # train, convert to integers, export to ONNX",
        "",
        f"Classes, with their images: {classes}.",
        *looked.source.note.splitlines()[1:],  # the first names the classes
        f"{chosen.model} at {chosen.image_size} pixels: {chosen.why}.",
    ]
    first, last = chosen.outer
    own = "none: from nothing (of resnet18: DEFAULT, published ones)"
    published = "DEFAULT: published ones; none: from nothing"
    lines: list[tuple[str, str]] = [
        ("seed: 0", ""),
        ("model:", ""),
        (f"  name: {chosen.model}", "qtool list models: the others"),
        (f"  weights: {chosen.weights}", own if chosen.model == "resnet20" else published),
        ("data:", ""),
        (f"  name: {looked.reader}", ""),
        (f"  root: {_scalar(path_from(looked.folder, path.parent))}", ""),
        *((f"  {key}: {_scalar(value)}", "") for key, value in _own_keys(looked)),
        (f"  batch_size: {chosen.batch_size}", "images in a step"),
        (f"  image_size: {chosen.image_size}", "pixels; fewer are faster"),
        *_bad_files(looked),
        ("quantization:", ""),
        ("  weights:", ""),
        ("    bits: 4", "1 to 8"),
        ("    range: learned", ""),
        ("    estimator: straight_through", "qtool list estimators: the others"),
        ("    saturation: avoid", "exact on processors without VNNI, too"),
        ("  activations:", ""),
        ("    bits: 4", "1 to 8"),
        ("    estimator: clipped_relu", ""),
        ("  overrides:", "the first and the last layer"),
        (f"    - {{match: [{first}, {last}], weights: {{bits: 8}}, activations: {{bits: 8}}}}", ""),
        ("training:", ""),
        *([("  loss: binary_cross_entropy", "each label by itself")] if looked.several else []),
        (f"  epochs: {chosen.epochs}", "passes over the training images"),
        ("  optimizer: {name: sgd, momentum: 0.9, weight_decay: 1e-4}", ""),
        (f"  learning_rate: {{name: cosine, start: {chosen.rate}, stop: 0.0, warmup: 0.05}}", ""),
    ]
    body = [f"{said:<{COLUMN}}  # {what}" if what else said for said, what in lines]
    return "\n".join([*(f"# {printable(line)}".rstrip() for line in head), *body]) + "\n"


def _own_keys(looked: Looked) -> list[tuple[str, str]]:
    """Return the parameters of what reads the folder, but that on bad files."""
    return [(key, value) for key, value in looked.params.items() if key != "bad_files"]


def _bad_files(looked: Looked) -> list[tuple[str, str]]:
    """Return the line that leaves out what cannot be read, where there is anything."""
    if "bad_files" not in looked.params:
        return []
    names = ", ".join(str(bad) for bad in looked.bad[:MOST_NAMED])
    more = len(looked.bad) - MOST_NAMED
    said = f"{len(looked.bad):,} that cannot be read: {names}" + (f", {more:,} more" * (more > 0))
    return [("  bad_files: skip", printable(said if looked.bad else "some are missing"))]


def _scalar(text: str) -> str:
    """Return a text as YAML has it."""
    plain = PLAIN.fullmatch(text) and text.lower() not in SCALARS
    return text if plain or text == "." else json.dumps(text)
