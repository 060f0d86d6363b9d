"""Methods of post-training quantization: what may be done to a network that is not trained.

Each takes a calibrated network and changes it in place, so that converting it gives more accurate
integers, and returns what it did, layer by layer. To add one, write a function and list it by the
decorator: its name is its name on the command line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from qtool.graph.inputs import Inputs
from qtool.registry import Registry
from qtool.reports.improvements import Applied


@dataclass(frozen=True)
class Calibrated:
    """A network from `prepare` whose ranges are set, in evaluation mode.

    Attributes:
        model: changed in place. `qtool.quantizers.control.in_float` makes it the float network.
        batches: of calibration images, on the model's device.
        seed: of whatever is drawn.
        keep: file that a method which takes minutes keeps its state in, to go on from; None: it
            keeps none.
    """

    model: nn.Module
    batches: Sequence[Inputs]
    seed: int = 0
    keep: Path | None = field(default=None)


Method = Callable[[Calibrated], list[Applied]]
METHODS = Registry[Method]("method")
"""What `--method` chooses from."""

DEFAULT = "default"
