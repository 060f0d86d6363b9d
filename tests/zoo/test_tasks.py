"""Segmentation, detection and video: torchvision's networks that are no classifiers of images."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation, video

import qtool
from qtool.errors import ExportError
from tests.zoo.harness import tensors

RECIPE = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "every_value"}}
WITHOUT = {"weights": None, "weights_backbone": None}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def layers_of(model: nn.Module) -> int:
    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    return sum(isinstance(module, kinds) for module in model.modules())


def stepped(model: nn.Module, loss: Tensor) -> nn.Module:
    """Take one step of gradient descent, and return the integer model."""
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=1e-4).step()
    return qtool.convert(model.eval())


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: segmentation.fcn_resnet50(**WITHOUT), (2, 3, 64, 64)),
        (lambda: segmentation.deeplabv3_mobilenet_v3_large(**WITHOUT), (2, 3, 64, 64)),
        (lambda: segmentation.lraspp_mobilenet_v3_large(**WITHOUT), (2, 3, 64, 64)),
        (lambda: video.r3d_18(weights=None), (2, 3, 4, 32, 32)),
    ],
    ids=["fcn", "deeplab", "lraspp", "r3d"],
)
def test_maps_and_clips_go_from_prepare_to_the_runtime(
    build: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    given = images(*shape)
    prepared = qtool.prepare(build(), RECIPE, example=given).train()
    made = tensors(prepared(given))
    integer = stepped(prepared, torch.stack([one.square().mean() for one in made]).sum())
    assert len(integer.qtool.layers) == layers_of(build())
    assert integer.qtool.left_float == {}
    assert integer.qtool.not_folded == {}
    qtool.export_onnx(integer, given, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    with torch.no_grad():
        expected = tensors(integer(given))
    found = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    for one, other in zip(expected, found, strict=True):
        assert float((one - torch.from_numpy(other)).abs().max()) < 1e-4 * float(one.std())


@pytest.mark.parametrize(
    "build",
    [
        lambda: detection.ssdlite320_mobilenet_v3_large(**WITHOUT),
        lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**WITHOUT),
    ],
    ids=["ssdlite", "fasterrcnn"],
)
def test_a_detector_is_trained_and_converted_and_its_boxes_keep_it_from_onnx(
    build: Callable[[], nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    photos = [images(3, 64, 64, seed=n) for n in range(2)]
    model = build()
    qtool.reestimate_batch_norm(model.backbone, [torch.stack(photos)])  # as if it were trained
    prepared = qtool.prepare(model.eval(), RECIPE, example=(photos,)).train()
    targets = [
        {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        for _ in photos
    ]
    integer = stepped(prepared, torch.stack(list(prepared(photos, targets).values())).sum())
    assert len(integer.qtool.layers) == layers_of(build())
    assert integer.qtool.left_float == {}
    with torch.no_grad():
        found = integer(photos)
    assert [sorted(one) for one in found] == [["boxes", "labels", "scores"]] * 2
    with pytest.raises(ExportError, match="depends on what the inputs hold, as with the boxes"):
        qtool.export_onnx(integer, (photos,), tmp_path / "m.onnx")
    assert capfd.readouterr().err == ""
