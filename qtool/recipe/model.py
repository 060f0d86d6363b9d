"""The section `model`: the network and where its weights come from."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from qtool.models.vision import model_problems, says_channels
from qtool.problems import Problem
from qtool.recipe.named_section import NamedSection


class Model(NamedSection):
    """The network."""

    name: str
    """A torchvision classification model by its own name, one of qtool's, timm:NAME, or a class or
    function of one's own, package.module:Name or file.py:Name."""

    weights: str = "none"
    """`none`, a torchvision weight name such as DEFAULT, or a file: a state_dict, a checkpoint as
    training scripts write it, or a run's checkpoint.pt or model.safetensors."""

    initialization: Literal["default", "he_uniform"] = "default"
    """he_uniform draws the weights of quantized layers from U(-m, m), m = sqrt(6 / fan_in)."""

    start: Literal["random", "near_spurious_minimum"] = "random"
    """near_spurious_minimum puts two_linear_layers beside the local minimum that is not the teacher
    of gaussian_teacher."""

    channels: int | None = Field(default=None, ge=1, le=1024)
    """Channels of the images that timm:NAME or a network of one's own takes; default: 3."""

    @classmethod
    def named_problems(cls, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return what is wrong with the network's name or its parameters."""
        found = []
        drawn = params.get("initialization", "default") != "default"
        if drawn and params.get("weights", "none") != "none":
            found.append(("initialization", "excludes given weights; leave out one of the two"))
        if params.get("channels") is not None and not says_channels(name):
            why = f"{name} takes the channels of its images; leave it out"
            found.append(("channels", why))
        fields = ("start", "initialization", "channels")
        own = {k: v for k, v in params.items() if k not in fields}
        return found + model_problems(name, own)
