"""Images that wait in memory, resized as torchvision does it."""

import pytest
import torch
from torchvision.transforms.v2 import functional as by_torchvision

from qtool.data import tensor_batches

NATIVE = "torchvision.transforms.v2.functional._geometry._do_native_uint8_resize_on_cpu"


@pytest.mark.parametrize("native", [True, False], ids=["kernels for integers", "without"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [5, 16, 33, 64])
def test_images_are_resized_as_torchvision_does_to_the_last_bit(
    size: int, channels: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_batches, "_resizes_integers", lambda: native)
    monkeypatch.setattr(NATIVE, lambda _: native)
    random = torch.Generator().manual_seed(size)
    images = torch.randint(0, 256, (7, channels, 28, 28), generator=random, dtype=torch.uint8)

    made = tensor_batches._resize(images, size)

    expected = by_torchvision.resize(images, [size, size], antialias=True)  # bilinear
    torch.testing.assert_close(made, expected, rtol=0, atol=0)


def test_this_processor_resizes_by_the_kernels_that_torchvision_would_take() -> None:
    native = by_torchvision._geometry._do_native_uint8_resize_on_cpu
    bilinear = by_torchvision._geometry.InterpolationMode.BILINEAR

    assert tensor_batches._resizes_integers() == native(bilinear)
