"""qtool's own float networks, those of the papers it reproduces.

Each takes the number of classes, the channels and the size of its images and, as keyword-only
arguments, its recipe parameters. To add one, write a function here and decorate it.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from qtool.errors import RecipeError
from qtool.models.residual import Shortcut, SmallResNet
from qtool.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")

LENET5_SMALLEST = 12  # pixels


@MODELS.add
def lenet5(classes: int, channels: int, image_size: int) -> nn.Module:
    """Build LeNet-5 with ReLU and max pooling: 61,706 parameters for 10 classes of 28 px grey.

    Reference: LeCun et al., 1998, Gradient-based learning applied to document recognition.
    """
    if image_size < LENET5_SMALLEST:
        raise RecipeError(
            f"lenet5 takes images of at least {LENET5_SMALLEST} pixels, got {image_size}; "
            "set data.image_size"
        )
    after_pools = (image_size // 2 - 4) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, kernel_size=5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, kernel_size=5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * after_pools**2, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, classes),
        )
    )


@MODELS.add
def resnet20(
    classes: int, channels: int, image_size: int, *, shortcut: Shortcut = "average_pool"
) -> nn.Module:
    """Build the ResNet-20 for small images: about 0.27 million parameters for 10 classes.

    The shortcut halves the size by averaging, as in arXiv:1903.05662, or by leaving out pixels, as
    published weights of the original have it; added channels are zeros.

    Reference: He et al., 2016, arXiv:1512.03385.
    """
    if image_size % 4:
        raise RecipeError(
            f"resnet20 halves the images twice, and {image_size} is no multiple of 4; "
            "set data.image_size"
        )
    return SmallResNet(classes, channels, 3, shortcut)
