"""Which modules have calls of their own, and whose calls are a block's."""

import pytest
from torch import nn
from torchvision.models import densenet121, resnet18
from torchvision.ops import StochasticDepth

from qtool.graph.sites.call_sites import is_block, is_dropout, is_leaf


class _Half(nn.AlphaDropout):
    """A dropout that shifts what it keeps."""


def test_modules_with_a_forward_of_their_own_are_blocks_and_layers_are_not() -> None:
    model = resnet18()
    assert is_block(model.layer1[0])
    assert not is_block(model.layer1)  # Sequential
    assert is_leaf(model.relu)
    assert is_leaf(model.conv1)
    model.conv1.weight_quantizer = nn.Identity()  # as a quantized layer holds one
    assert is_leaf(model.conv1)
    assert not is_block(model.conv1)


def test_a_container_with_a_forward_is_a_block_a_list_is_none() -> None:
    assert is_block(densenet121().features.denseblock1)
    assert not is_block(nn.ModuleList([nn.ReLU()]))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Dropout2d(), True),
        (StochasticDepth(0.5, "row"), True),
        (_Half(), False),
        (nn.Identity(), False),
        (nn.Sequential(nn.Dropout()), False),
    ],
)
def test_what_drops_parts_of_its_input_is_dropout(module: nn.Module, expected: bool) -> None:
    assert is_dropout(module) is expected
