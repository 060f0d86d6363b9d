"""Under which place a state_dict was made, told by the names of what it holds."""

import re
from collections.abc import Iterable, Mapping

from torch import nn

from qtool.limits import OTHER_PLACE

# names that only one place brings about, the first that is found; layers have quantizers of their
# own under the others, too
_NAMES = {
    "every_value": re.compile(r"(^|\.)sites\.\w+\."),
    "relu_outputs": re.compile(r"(^|\.)quantizers\.\d+\."),
    "layer_inputs": re.compile(r"(^|\.)input_quantizer\."),
}


def place_of(names: Iterable[str]) -> str | None:
    """Return the place that the quantizers of activations have; None where there are none."""
    known = list(names)
    for place, pattern in _NAMES.items():
        if any(pattern.search(name) for name in known):
            return place
    return None


def refuse_other_place(
    model: nn.Module, state: Mapping[str, object], prefix: str, *rest: object
) -> None:
    """Check that a state is of the place that the model has, before it is loaded: a hook of torch.

    Raises:
        ModelError: If it is not; a ValueError, too.
    """
    del rest
    given = place_of(name.removeprefix(prefix) for name in state if name.startswith(prefix))
    own = place_of(model.state_dict())
    if None not in (given, own) and given != own:
        raise OTHER_PLACE.error(given=given, own=own)
