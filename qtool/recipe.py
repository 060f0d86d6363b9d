"""The recipe: everything a run depends on, checked in full before anything is built."""

import re
from abc import abstractmethod
from copy import copy
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)

from qtool.data.datasets import DATASETS
from qtool.errors import RecipeError
from qtool.models.vision import model_problems
from qtool.numerics.schedules import SCHEDULES
from qtool.quantizers.settings import Quantization
from qtool.registry import did_you_mean, shown
from qtool.run_folder import write_atomically
from qtool.sections import (
    Choice,
    Problem,
    ProblemsError,
    Section,
    attempt,
    check,
    finite,
    in_registry,
)
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS


def _take_warmup(name: str, params: dict[str, Any]) -> list[Problem]:
    """Check a learning rate's warmup, and that the rate is never negative or infinite."""
    warmup = params.pop("warmup", 0.0)
    if not finite(warmup) or not 0.0 <= warmup < 1.0:
        return [("warmup", f"{shown(warmup)} is not a share of training, 0 <= warmup < 1")]
    if name in SCHEDULES and not SCHEDULES.problems(name, params):
        schedule = SCHEDULES.build(name, **params)
        if bad := [v for k in range(101) if not 0 <= (v := schedule(k / 100)) < inf]:
            return [("", f"the learning rate becomes {bad[0]:g}; it must stay finite and >= 0")]
    return []


_rate_check = in_registry(SCHEDULES, also=_take_warmup)
OptimizerChoice = Annotated[Choice, in_registry(OPTIMIZERS)]
LossChoice = Annotated[Choice, in_registry(LOSSES)]
LearningRateChoice = Annotated[Choice, _rate_check]


class _NamedSection(Section):
    """A section that names one of a family; keys that are not fields are its parameters."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def params(self) -> dict[str, Any]:
        """Return the parameters that are the chosen one's own."""
        return dict(self.model_extra or {})

    @classmethod
    @abstractmethod
    def _named_problems(cls, name: str, params: dict[str, Any]) -> list[Problem]:
        """Return what is wrong with the name and its parameters."""

    @model_validator(mode="wrap")
    @classmethod
    def _known(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check fields, name and parameters, and report what is wrong with any of them at once."""
        made, given, found = attempt(cls, data, handler)
        if isinstance(given, dict) and isinstance(name := given.get("name"), str):
            places = [place for place, _ in found]
            params = {str(k): v for k, v in given.items() if str(k) not in ("name", *places)}
            for place, why in cls._named_problems(name, params):
                if "has no parameter" in why and get_close_matches(place, cls.model_fields):
                    why = f"unknown key{did_you_mean(place, cls.model_fields)}"
                found.append((place or "name", why))
        if found or made is None:
            raise ProblemsError(found)
        return made


class Model(_NamedSection):
    """The network."""

    name: str
    """A torchvision classification model by its own name, or one of qtool's (lenet5)."""

    weights: str = "none"
    """`none`, a torchvision weight name such as DEFAULT, or the path of a state_dict file."""

    initialization: Literal["default", "he_uniform"] = "default"
    """he_uniform draws the weights of quantized layers from U(-m, m), m = sqrt(6 / fan_in)."""

    @classmethod
    def _named_problems(cls, name: str, params: dict[str, Any]) -> list[Problem]:
        found = []
        drawn = params.pop("initialization", "default") != "default"
        if drawn and params.get("weights", "none") != "none":
            found.append(("initialization", "excludes given weights; leave out one of the two"))
        return found + model_problems(name, params)


class Data(_NamedSection):
    """The images."""

    name: str
    """A data set: digits, mnist, fashion_mnist, cifar10, cifar100, image_folder or arrays."""

    batch_size: int = Field(default=64, ge=1)
    """Images in a training step."""

    image_size: int | None = Field(default=None, ge=4, le=2048)
    """Height and width in pixels that images are resized to; default: the data set's own."""

    train_samples: int | None = Field(default=None, ge=1)
    """Train on the first so many of a seeded shuffle; default: all."""

    augment: bool = True
    """Random crops and flips, as the data set's own recipe has them."""

    root: str | None = None
    """Folder of the data sets; default: QTOOL_DATA, else ~/.cache/qtool/data."""

    workers: int = Field(default=2, ge=0, le=256)
    """Processes that decode images which do not fit into memory."""

    @classmethod
    def _named_problems(cls, name: str, params: dict[str, Any]) -> list[Problem]:
        own = {key: value for key, value in params.items() if key not in cls.model_fields}
        return DATASETS.problems(name, own)


class Training(Section):
    """How long and how fast to train."""

    epochs: int = Field(ge=1, le=100_000)
    """Passes over the training set."""

    optimizer: OptimizerChoice = Choice(name="sgd")
    """What turns gradients into steps."""

    learning_rate: LearningRateChoice
    """Schedule of the learning rate, step by step; a plain number stays constant."""

    loss: LossChoice = Choice(name="cross_entropy")
    """What training makes small."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of layers; rounding to the grid is always decided in float32."""

    channels_last: bool = True
    """Keep images with their channels innermost, which is faster."""

    calibration_batches: int = Field(default=8, ge=1)
    """Batches that set the activation ranges before the first step."""

    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints; the last epoch always has one."""

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _number_is_constant(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"name": "constant", "value": float(value) if finite(value) else value}
        return value


class Recipe(Section):
    """One run, from data to checkpoint."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides initial weights, the order of samples and their augmentation."""

    model: Model
    """The network."""

    data: Data
    """The images."""

    quantization: Quantization = Quantization()
    """What is quantized, and how; absent: a float run."""

    training: Training
    """How long and how fast to train."""

    @field_validator("quantization", mode="before")
    @classmethod
    def _null_is_float(cls, value: object) -> object:
        return {} if value is None else value

    def as_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as plain data; loading it again gives an equal recipe."""
        return _without_none(self.model_dump(mode="python"))

    def identity(self) -> dict[str, Any]:
        """Return what makes two runs the same: all but where data lies and who decodes it."""
        data = self.as_dict()
        data["data"] = {k: v for k, v in data["data"].items() if k not in ("root", "workers")}
        return data


def _without_none(data: Any, inside_override: bool = False) -> Any:
    """Drop absent keys, but keep the nulls of an override, which mean float."""
    if isinstance(data, dict):
        return {
            key: _without_none(value, inside_override or key == "overrides")
            for key, value in data.items()
            if value is not None or inside_override
        }
    if isinstance(data, list):
        return [_without_none(item, inside_override) for item in data]
    return data


class _RecipeLoader(yaml.SafeLoader):
    """YAML without its two traps: `1e-3` is a number, and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise yaml.YAMLError(f"line {line}: the key {key.value} is written twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Return the data of a YAML text.

    Raises:
        yaml.YAMLError: If it is not YAML, or a key is written twice; says where in one line.
    """
    try:
        return yaml.load(text, _RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise yaml.YAMLError(f"{place}{error.problem or error.context}") from error
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except ValueError as error:  # a date or a number that YAML knows and Python does not
        raise yaml.YAMLError(str(error).partition(";")[0]) from error


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Return the plain data of a recipe file.

    Raises:
        RecipeError: If the file cannot be read or is no mapping.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file or folder; give the path of a recipe") from error
    except IsADirectoryError as error:
        raise RecipeError(f"{path}: a folder; give the path of a recipe file in it") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file; a recipe is YAML in UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise RecipeError(f"{path}: not YAML: {problem}") from error
    if data is None:
        raise RecipeError(f"{path}: empty; a recipe has the keys {', '.join(Recipe.model_fields)}")
    if not isinstance(data, dict):
        what = "a list" if isinstance(data, list) else shown(data)
        raise RecipeError(
            f"{path}: holds {what}; a recipe is a mapping with the keys "
            f"{', '.join(Recipe.model_fields)}"
        )
    return data


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return a copy of a recipe's data with every `key=value` set, as `--set` writes them.

    A dotted key walks into sections; a number picks an item of a list. A choice written as a
    plain name, such as `estimator: relu`, becomes `{name: relu}` where a parameter is set.

    Raises:
        RecipeError: If an assignment is not `key=value`, its value is not YAML, or there is
            nothing at its place to set a key in.
    """
    data = dict(data)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise RecipeError(f"--set {assignment}: write key=value, such as training.epochs=3")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise RecipeError(f"--set {assignment}: the value is not YAML: {problem}") from error
        _set(data, path, value, assignment)
    return data


def _set(data: Any, path: list[str], value: Any, assignment: str) -> None:
    """Set one value; sections on the way are copied, for an alias may share them with others."""
    for position, part in enumerate(path):
        last = position == len(path) - 1
        if isinstance(data, list):
            if not part.isdecimal() or int(part) >= len(data):
                place = ".".join(path[:position])
                raise RecipeError(
                    f"--set {assignment}: {place} is a list of {len(data)}; "
                    f"pick one by its number, from 0"
                )
            key: Any = int(part)
        else:
            key = part
        if last:
            data[key] = value
            return
        inner = data[key] if isinstance(data, list) else data.get(key)
        if inner is None:
            inner = {}
        elif isinstance(inner, str):
            inner = {"name": inner}
        elif not isinstance(inner, dict | list):
            place = ".".join(path[: position + 1])
            raise RecipeError(f"--set {assignment}: {place} is {shown(inner)}, which has no keys")
        data[key] = inner = copy(inner)
        data = inner


def load_recipe(path: Path, assignments: list[str] | None = None) -> Recipe:
    """Read and check a recipe file, with the assignments of `--set`.

    Raises:
        RecipeError: If the file cannot be read. Lists every problem with its dotted place.
    """
    return check(Recipe, override(read_recipe_file(path), assignments or []), str(path))


def write_recipe(recipe: Recipe, path: Path, comment: str) -> None:
    """Write the resolved recipe in one move, under a comment of one line."""
    plain = yaml.safe_dump(recipe.as_dict(), sort_keys=False, default_flow_style=None, width=100)
    text = f"# {comment}\n{plain}"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
