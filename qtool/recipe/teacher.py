"""The sections `training.teacher` and `training.distillation`: who teaches, and by what."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from qtool.models.vision import model_problems, says_channels
from qtool.problems import Problem
from qtool.recipe.named_section import NamedSection
from qtool.settings.section import Section


class Teacher(NamedSection):
    """A trained network, in float, that a network is trained to follow."""

    name: str
    """The network that teaches, by any name that model.name takes, with its own parameters;
    default of the section: the float network with model.weights."""

    weights: str
    """Its weights, as model.weights has them."""

    channels: int | None = Field(default=None, ge=1, le=1024)
    """Channels of the images that timm:NAME or a network of one's own takes; default: 3."""

    @classmethod
    def named_problems(cls, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return what is wrong with the network's name or its parameters."""
        found: list[Problem] = []
        if params.get("weights") == "none":
            why = "a teacher knows something; give a file, or a name of published weights"
            found.append(("weights", why))
        if params.get("channels") is not None and not says_channels(name):
            found.append(("channels", f"{name} takes the channels of its images; leave it out"))
        own = {key: value for key, value in params.items() if key != "channels"}
        return found + model_problems(name, own)


class Distillation(Section):
    """What the teacher adds to the loss."""

    loss: Literal["kl", "features"] = "kl"
    """kl: how far softened outputs are from the teacher's. features: how far the outputs of blocks
    are that both networks have by the same name."""

    temperature: float | None = Field(default=None, gt=0)
    """Of kl: logits are divided by it; default: 4."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Of the teacher in the loss: (1 - share) x training.loss + share x this one."""

    def problems(self) -> list[Problem]:
        """Return what two keys of the section cannot both say."""
        if self.loss == "features" and self.temperature is not None:
            return [("temperature", "is of loss: kl alone; leave it out")]
        return []
