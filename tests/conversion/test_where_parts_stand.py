"""Parts under two names, and models that are a single layer: from float to a file and back."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.integer.file import load_integer, save_integer
from qtool.integer.layers import IntegerLayer
from tests.kit import evaluate_by_hand

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BOTH = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "layer_inputs"}}


class Twice(nn.Module):
    """Every part stands under two names; the convolutions are in a plain list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = self.same_relu = nn.ReLU()
        self.norm = self.same_norm = nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 1)
        self.block = self.same_block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardtanh())
        self.fc = nn.Linear(3, 4)
        self.steps = [self.first, self.last]
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same_relu(self.steps[0](self.second(x)))
        x = self.same_norm(self.steps[1](self.relu(self.same_block(x))))
        return self.fc(self.block(x).mean((2, 3)))


MODELS = {
    "twice": (Twice, IMAGES, 4),
    "a convolution": (lambda: nn.Conv2d(3, 4, 3), IMAGES, 1),
    "a linear layer": (lambda: nn.Linear(6, 4), IMAGES, 1),
}


@pytest.mark.parametrize("place", ["layer_inputs", "relu_outputs"])
@pytest.mark.parametrize("name", MODELS)
def test_every_place_is_quantized_trained_and_converted(
    name: str, place: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    build, images, count = MODELS[name]
    net = build()
    quantization = {**BOTH, "activations": {"bits": 8, "place": place}}
    model = qtool.prepare(net.train(), quantization, images)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    qtool.round_biases(model.eval())
    integer = qtool.convert(model)
    kinds = [type(module) for module in integer.modules()]
    assert sum(issubclass(kind, IntegerLayer) for kind in kinds) == count
    assert not [kind for kind in kinds if kind.__name__.startswith("Quant")]
    given, expected = integer(images), evaluate_by_hand(net, model, images)
    torch.testing.assert_close(given.double(), expected, rtol=1e-4, atol=1e-4)

    save_integer(integer, tmp_path / "m.safetensors", {})
    again = load_integer(tmp_path / "m.safetensors", deepcopy(net))
    assert torch.equal(again(images), given)


@pytest.mark.parametrize("place", ["layer_inputs", "relu_outputs"])
def test_hooks_that_change_values_stay_a_part_of_the_model(place: str, tmp_path: Path) -> None:
    class Hooked(nn.Sequential):
        """Hooks before and behind a layer, behind a norm, behind a ReLU, and one that looks on."""

        def __init__(self) -> None:
            first, last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
            norms, relu = [nn.BatchNorm2d(6), nn.BatchNorm2d(6)], nn.ReLU()
            super().__init__(first, norms[0], relu, last, norms[1], nn.Flatten(), nn.Linear(216, 4))
            first.register_forward_pre_hook(lambda module, args: (2 * args[0].clamp(max=1.5),))
            first.register_forward_hook(lambda module, args, made: made + 0.5)
            relu.register_forward_hook(lambda module, args, made: made - 0.3)
            last.register_forward_hook(lambda module, args, made: seen.append(made.shape))
            norms[1].register_forward_hook(lambda module, args, made: made * 1.5)

    seen: list[torch.Size] = []
    torch.manual_seed(0)
    net = Hooked().eval()
    model = qtool.prepare(net, {**BOTH, "activations": {"bits": 8, "place": place}}, IMAGES)
    qtool.round_biases(model.eval())
    integer = qtool.convert(model)
    assert [spec.batch_norm for spec in integer.qtool.layers] == [None, "4", None]
    assert "1" in integer.qtool.not_folded
    expected = evaluate_by_hand(net, model, IMAGES)
    seen.clear()
    given = integer(IMAGES)
    assert seen == [torch.Size([4, 6, 6, 6])]
    torch.testing.assert_close(given.double(), expected, rtol=1e-3, atol=1e-3)

    save_integer(integer, tmp_path / "m.safetensors", {})
    assert torch.equal(load_integer(tmp_path / "m.safetensors", deepcopy(net))(IMAGES), given)
