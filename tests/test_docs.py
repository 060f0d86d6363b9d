"""README, the changelog and the code say the same."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from qtool import __version__
from qtool.cli import app
from qtool.cli.compare import compare_app
from qtool.data.datasets import DATASETS
from qtool.export.targets.target import TARGETS
from qtool.models.papers import MODELS
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.ranges import RANGES
from qtool.numerics.roundings import ROUNDINGS
from qtool.numerics.schedules import SCHEDULES
from qtool.recipe.recipe import Data, Model, Recipe, Training
from qtool.settings.quantization import Override, Quantization
from qtool.settings.tensors import (
    ActivationQuantization,
    Freezing,
    WeightQuantization,
)
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
LAYOUT = re.findall(r"[├└]── (\S+)", README)
MODULES = [
    path.relative_to(ROOT / "qtool")
    for path in sorted((ROOT / "qtool").rglob("*.py"))
    if not path.name.startswith("__")
]
REGISTRIES = (
    *(ESTIMATORS, ROUNDINGS, SCHEDULES, RANGES),
    *(DATASETS, MODELS, LOSSES, OPTIMIZERS, TARGETS),
)
SECTIONS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "model.": Model,
    "data.": Data,
    "quantization.": Quantization,
    "quantization.weights.": WeightQuantization,
    "quantization.weights.freezing.": Freezing,
    "quantization.activations.": ActivationQuantization,
    "quantization.overrides[].": Override,
    "training.": Training,
}
KEYS = [
    (f"{prefix}{key}", field)
    for prefix, section in SECTIONS.items()
    for key, field in section.model_fields.items()
    if f"{prefix}{key}." not in SECTIONS and f"{prefix}{key}[]." not in SECTIONS
]
COMMANDS = {f"qtool {c.callback.__name__}": c for c in app.registered_commands if c.callback} | {
    f"qtool compare {c.name}": c for c in compare_app.registered_commands
}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_is_in_the_layout(module):
    assert module.name in LAYOUT


@pytest.mark.parametrize("name", sorted(set(LAYOUT)))
def test_every_name_in_the_layout_exists(name):
    assert list((ROOT / "qtool").rglob(name.rstrip("/"))) or (ROOT / name).exists()


@pytest.mark.parametrize("name", [name for registry in REGISTRIES for name in registry.names()])
def test_every_choice_is_documented(name):
    assert f"`{name}`" in README


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.family)
def test_every_parameter_of_a_choice_is_documented(registry):
    for name in registry.names():
        for parameter in registry.parameters(name):
            assert re.search(rf"`{parameter}[`:=]", README), f"{name}: {parameter}"


@pytest.mark.parametrize(("key", "field"), KEYS, ids=[key for key, _ in KEYS])
def test_every_recipe_key_has_a_row_with_its_docstring(key, field):
    row = next((line for line in README.splitlines() if line.startswith(f"| `{key}` |")), "")

    assert " ".join(str(field.description).split()) in row


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command):
    assert f"{command} " in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command):
    import inspect

    for parameter in inspect.signature(COMMANDS[command].callback).parameters.values():
        for info in parameter.annotation.__metadata__:
            for flag in getattr(info, "param_decls", None) or ():
                for name in flag.split("/"):
                    assert f"`{name}" in README, name


def test_this_version_is_the_newest_in_the_changelog():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", CHANGELOG, flags=re.MULTILINE)

    assert versions[0] == __version__
    assert "## [Unreleased]" in CHANGELOG


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_opens_with_its_command_and_its_result(path):
    head = path.read_text().split("seed:")[0]

    assert f"qtool train {path.relative_to(ROOT)}" in head
    result = re.search(r"^# (Result|Validation accuracy)\b.*", head, re.MULTILINE | re.DOTALL)
    assert result is not None
    assert re.search(r"\d|not measured", result[0])
