"""The network of two linear layers, on which coarse gradients were first understood.

The rows z_1 .. z_m of an input share the first layer:

    y = V [sigma(W z_1), ..., sigma(W z_m)],  sigma a quantized ReLU

References: Yin et al., 2019, arXiv:1903.05662, with one weight vector for all rows;
Long et al., 2020, arXiv:2011.11256, with one row, many weight vectors and a fixed second layer.
"""

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from qtool.errors import RecipeError
from qtool.numerics.coarse_gradient import spurious_minimum

Output = Literal["trained", "fixed"]
OWN_CLASS = 0.5  # what a neuron of the fixed second layer adds to its class
FROM_SPURIOUS = 0.05  # radians between w and the spurious minimum at the start


class TwoLinearLayers(nn.Module):
    """A linear layer over each row, ReLU, and a linear layer over all rows; without biases.

    Attributes:
        first: weight [hidden, columns], normal at the start.
        second: weight [classes, rows * hidden]; fixed, it is 0.5 between a neuron and its own
            class, and 0 elsewhere, and does not train.
    """

    def __init__(
        self,
        classes: int,
        *,
        rows: int,
        columns: int,
        hidden: int,
        output: Output,
        initial_std: float,
    ) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.first = nn.Linear(columns, hidden, bias=False)
        self.relu = nn.ReLU()
        self.second = nn.Linear(rows * hidden, classes, bias=False)
        with torch.no_grad():
            self.first.weight.normal_(0, initial_std)
            self.second.weight.normal_(0, initial_std)
        if output == "fixed":
            self._fix(classes, rows * hidden)

    def _fix(self, classes: int, neurons: int) -> None:
        if neurons % classes:
            raise RecipeError(
                f"two_linear_layers with output: fixed shares {neurons} neurons out among "
                f"{classes} classes; set model.hidden so that rows * hidden is a multiple of "
                f"{classes}"
            )
        owner = torch.eye(classes).repeat_interleave(neurons // classes, dim=1)
        with torch.no_grad():
            self.second.weight.copy_(OWN_CLASS * owner)
        self.second.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs [B, classes] of inputs [B, ...] of rows * columns values each.

        Raises:
            RecipeError: If they have another number of values.
        """
        values = x.flatten(1)
        if values.shape[1] != self.rows * self.columns:
            raise RecipeError(
                f"two_linear_layers takes rows * columns = {self.rows * self.columns} values, and "
                f"the data have {values.shape[1]}; set model.rows and model.columns"
            )
        hidden = self.relu(self.first(values.reshape(-1, self.rows, self.columns)))
        return self.second(hidden.flatten(1))


@torch.no_grad()
def begin_near_spurious_minimum(model: nn.Module, v_star: Tensor, w_star: Tensor) -> None:
    """Put a student of one weight vector near the local minimum that is not the teacher.

        v = v_s, |w| = 1, and the angle between w and w* is pi - 0.05

    Args:
        model: a TwoLinearLayers with hidden 1, changed in place; torch's global generator gives the
            direction in which w differs.
        v_star: the teacher's second layer, float64 [m].
        w_star: its first layer, float64 [n], of norm 1.

    Raises:
        RecipeError: If this teacher has no such minimum.
    """
    assert isinstance(model, TwoLinearLayers)
    found = spurious_minimum(v_star, w_star)
    if found is None:
        raise RecipeError(
            "model.start: this teacher has no spurious minimum, which takes "
            "(1.v*)^2 < (m + 1) / 2 |v*|^2; set data.teacher: with_spurious_minimum"
        )
    v, w = found
    across = torch.randn(len(w), dtype=torch.float64)
    across -= (across @ w) * w
    w = math.cos(FROM_SPURIOUS) * w + math.sin(FROM_SPURIOUS) * across / across.norm()
    model.first.weight.copy_(w.unsqueeze(0))
    model.second.weight.copy_(v.unsqueeze(0))


def shape_of_input(architecture: Mapping[str, object]) -> list[int]:
    """Return [channels, height, width] of what a network takes, from `Built.architecture`."""
    params = architecture.get("params")
    if isinstance(params, dict) and "columns" in params:
        return [1, params.get("rows", 1), params["columns"]]
    size, channels = architecture["image_size"], architecture.get("channels", 3)
    return [cast(int, side) for side in (channels, size, size)]
