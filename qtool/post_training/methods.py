"""Methods of post-training quantization: what may be done to a network that is not trained.

Each takes a calibrated network and changes it in place, so that converting it gives more accurate
integers, and returns what it did, layer by layer. To add one, write a function and list it by the
decorator: its name is its name on the command line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field
from torch import nn

from qtool.errors import RecipeError
from qtool.files.yaml_data import parse_yaml
from qtool.graph.inputs import Inputs
from qtool.post_training.in_order import InOrder
from qtool.post_training.walk import in_one
from qtool.problems import report
from qtool.registry import Registry
from qtool.reports.improvements import Applied
from qtool.settings.section import Choice


@dataclass(frozen=True)
class Calibrated:
    """A network from `prepare` whose ranges are set, in evaluation mode.

    Attributes:
        model: changed in place. `qtool.quantizers.control.in_float` makes it the float network.
        batches: of calibration images, on the model's device.
        seed: of whatever is drawn.
        keep: file that a method which takes minutes keeps its state in, to go on from; None: it
            keeps none.
        saturation: avoid asks for codes that do not saturate on processors without VNNI. What a
            method leaves, `improve` holds back after it.
    """

    model: nn.Module
    batches: Sequence[Inputs]
    seed: int = 0
    keep: Path | None = field(default=None)
    saturation: Literal["allow", "avoid"] = "allow"

    @cached_property
    def in_order(self) -> InOrder:
        """The layers, and what the float network's give; to be asked for before codes are held."""
        inputs = in_one(self.batches)
        return InOrder.of(self.model, inputs, avoids=self.saturation == "avoid")


Positive = Annotated[int, Field(ge=1)]
Method = Callable[..., list[Applied]]
METHODS = Registry[Method]("method")
"""What `--method` chooses from."""

DEFAULT = "default"


def method_of(said: str) -> Choice:
    """Return a method and its parameters: `adaround`, or `{name: adaround, iterations: 500}`.

    Raises:
        RecipeError: If there is no such method, or it has no such parameter.
    """
    given: object = said
    if said.lstrip().startswith("{"):
        try:
            given = parse_yaml(said)
        except (yaml.YAMLError, ValueError) as error:
            raise RecipeError(f"method {said}: not YAML: {' '.join(str(error).split())}") from error
    data = {"name": given} if isinstance(given, str) else given
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        example = "a name, or {name: adaround, iterations: 500}"
        raise RecipeError(f"method {said}: not a method; give {example}")
    choice = Choice.model_validate(data)
    if found := METHODS.problems(choice.name, choice.params):
        raise report("--method", found) if choice.params else RecipeError(found[0][1])
    return choice
