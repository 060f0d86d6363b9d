"""Networks that others publish: every classifier of torchvision, some of timm, and their sizes.

Each is built without weights, as its library has it by default, and is given images of 64 pixels,
or of the least size that its constructor and its layers take.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

SIZE = 64  # pixels

TORCHVISION: Mapping[str, Mapping[str, int]] = {  # the least size, where it is not SIZE
    "inception_v3": {"size": 299},  # its auxiliary head wants a map of 17 x 17
    "maxvit_t": {"size": 224},  # every stage is cut into windows of 7 x 7
    "vit_h_14": {"size": 70},  # patches of 14 x 14
}

TIMM: Mapping[str, Mapping[str, int]] = {
    "resnet18": {},
    "resnet26d": {},
    "mobilenetv3_small_050": {},
    "efficientnet_lite0": {},
    "tf_efficientnet_b0": {},
    "mobileone_s0": {},
    "repvgg_a0": {},
    "ghostnet_050": {},
    "regnetx_002": {},
    "eca_nfnet_l0": {},
    "edgenext_xx_small": {},
    "xcit_nano_12_p16_224": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "swin_tiny_patch4_window7_224": {"size": 224},
    "mobilevit_xxs": {},
    "poolformer_s12": {},
    "mixer_s16_224": {"size": 224},
    "gmlp_s16_224": {"size": 224},
    "levit_128s": {"size": 224},
    "crossvit_tiny_240": {"size": 240},
    "cait_xxs24_224": {},
    "hrnet_w18_small": {},
    "dla34": {},
    "densenet121": {},
    "rexnet_100": {},
    "fbnetc_100": {},
    "mnasnet_small": {},
    "semnasnet_075": {},
    "tinynet_e": {},
    "lcnet_050": {},
    "hardcorenas_a": {},
}
FLEXIBLE = (  # that take the size of their images as img_size
    "xcit_nano_12_p16_224", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "cait_xxs24_224",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A network of a library.

    Attributes:
        name: as the library has it, after the library's own: `timm/resnet18`.
        build: makes it, with weights drawn anew.
        size: height and width of its images, in pixels.
        parameters: how many it has, where its library says so without building it.
    """

    name: str
    build: Callable[[], nn.Module] = field(repr=False)
    size: int = SIZE
    parameters: int = 0

    def images(self, rows: int, seed: int) -> Tensor:
        """Return images [rows, 3, size, size], each of spots of its own and a little noise."""
        drawn = torch.Generator().manual_seed(seed)
        spots = torch.randn(rows, 3, 8, 8, generator=drawn)
        whole = F.interpolate(spots, self.size, mode="bilinear", align_corners=False)
        return whole + 0.3 * torch.randn(whole.shape, generator=drawn)


def torchvision_networks() -> dict[str, Published]:
    """Return torchvision's classifiers by name."""

    def one(name: str) -> Published:
        size = TORCHVISION.get(name, {}).get("size", SIZE)
        sized = {"image_size": size} if name.startswith("vit_") else {}
        return Published(
            f"torchvision/{name}",
            lambda: models.get_model(name, weights=None, **sized),
            size,
            next(iter(models.get_model_weights(name))).meta["num_params"],
        )

    found = [one(name) for name in models.list_models(module=models)]
    return {network.name: network for network in found}


def timm_networks() -> dict[str, Published]:
    """Return the networks of TIMM by name; timm itself is loaded when one is built."""

    def one(name: str) -> Published:
        size = TIMM[name].get("size", SIZE)

        def build() -> nn.Module:
            import timm

            sized = {"img_size": size} if name in FLEXIBLE else {}
            return timm.create_model(name, pretrained=False, **sized)

        return Published(f"timm/{name}", build, size)

    return {network.name: network for network in map(one, TIMM)}
