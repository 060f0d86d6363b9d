"""Transformers: every projection and convolution runs in integers, as in the integer model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttention,
    SwinTransformer,
    SwinTransformerBlockV2,
)

import qtool
from qtool.export.proof.why_slow import Known, kernels_of
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.integer.converted import converted_state
from qtool.integer.file import load_integer, save_integer
from qtool.quantizers.layers import quant_layers

EVERY = {
    "weights": {"bits": 8, "saturation": "avoid"},
    "activations": {"bits": 8, "place": "every_value"},
}


class Tokens(nn.Module):
    """Attention of one tensor and of two, a window that is rolled, and layers on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.window = ShiftedWindowAttention(8, [4, 4], [2, 2], 2)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.window(self.norm(x.permute(0, 2, 3, 1))).flatten(1, 2)
        y = self.norm(x)
        x = x + self.own(y, y, y, need_weights=False)[0]
        x = x + self.other(self.norm(x), y, y)[0]
        return self.head(self.down(nn.functional.gelu(self.up(self.norm(x)))).mean(1))


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )


def swin(**more: Callable[..., nn.Module]) -> nn.Module:
    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], **more)


NETWORKS = {
    "tokens": (Tokens, 12),
    "vit": (vit, 10),
    "swin": (swin, 19),
    "swin_v2": (
        lambda: swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
        19,
    ),
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]),
        9,
    ),
}


@pytest.mark.parametrize(
    "name", ["tokens", *(pytest.param(n, marks=pytest.mark.slow) for n in list(NETWORKS)[1:])]
)
def test_every_layer_runs_in_integers_and_equals_the_integer_model(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make, layers = NETWORKS[name]
    net, x = make(), torch.randn(4, 3, 32, 32)
    for key, parameter in net.named_parameters():
        if parameter.ndim == 1 and key.endswith("bias") and "attn" not in key:
            nn.init.normal_(parameter, std=0.1)
    model = qtool.prepare(net.train(), EVERY, x)
    assert len(quant_layers(model)) == layers
    model(x).square().mean().backward()
    trained = [layer.weight.grad is not None for layer in quant_layers(model).values()]
    assert all(trained)
    qtool.round_biases(model.eval())
    integer = qtool.convert(model)
    assert len(integer.qtool.layers) == layers
    saved = tmp_path / "integer.safetensors"
    save_integer(integer, saved, {})
    with torch.no_grad():
        expected = integer(x)
        assert torch.equal(load_integer(saved, make())(x), expected)
    path = tmp_path / "model.onnx"
    described = qtool.export_onnx(integer, x, path)
    assert [layer["name"] for layer in described["layers"] if not layer["integer_kernel"]] == []
    runtime = OnnxRuntime()
    known = Known.of(converted_state(integer))
    slow = kernels_of(path, runtime.optimized(path), runtime, known).why_slow
    operators = {one.operator for one in slow}
    wanted = {"LayerNormalization", "Softmax", "Add"} - (
        {"Softmax"} if name == "convnext" else set()
    )
    assert operators >= wanted
    assert operators & {"Gelu", "BiasGelu"}  # the runtime may take in the bias before it
    # tokens: the mean of what a layer makes, with float neither before nor behind it
    refused = [one.name for one in slow if not one.by_design]
    assert refused == ([":avg_pool0"] if name == "tokens" else [])
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images in (x, x[:1]):
        given = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        with torch.no_grad():
            wanted = integer(images).numpy()
        assert np.abs(given - wanted).max() <= 1e-5 * float(expected.std())
