"""qtool's own float networks, those of the papers it reproduces.

Each takes the number of classes, the channels and the size of its images and, as keyword-only
arguments, its recipe parameters. To add one, write a function here and decorate it.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from qtool.errors import RecipeError
from qtool.models.activation_functions import Activation, Segments, activation_function
from qtool.models.building import initialize_convolutions, widened
from qtool.models.mobilenet import mobilenet
from qtool.models.preactivation import PreActivationResNet
from qtool.models.residual import Shortcut, SmallResNet
from qtool.models.two_layers import Output, TwoLinearLayers
from qtool.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
Whole = Annotated[int, Field(ge=1)]
Width = Annotated[float, Field(gt=0, le=4)]

LENET5_SMALLEST = 12  # pixels
TIMES = {2: "twice", 3: "three times", 5: "five times"}
VGG11_WIDTHS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
BINARYNET_WIDTHS = (128, 128, 256, 256, 512, 512)  # of convolutions; every second one is pooled
BINARYNET_HIDDEN = 1024
RESNETS = {  # their parameters, by layers
    20: "about 0.27 million",
    32: "about 0.46 million",
    44: "about 0.66 million",
    56: "about 0.85 million",
}


@MODELS.add
def lenet5(
    classes: int,
    channels: int,
    image_size: int,
    *,
    batch_norm: Literal["none", "fixed"] = "none",
    activation: Activation = "relu",
    segments: Segments = 3,
) -> nn.Module:
    """Build LeNet-5 with ReLU and max pooling: 61,706 parameters for 10 classes of 28 px grey.

    A fixed batch norm, without scale and shift, stands before each ReLU in arXiv:1903.05662. In
    place of ReLU there may be functions that train, piecewise_linear of so many segments.

    Reference: LeCun et al., 1998, Gradient-based learning applied to document recognition.
    """
    if image_size < LENET5_SMALLEST:
        raise RecipeError(
            f"lenet5 takes images of at least {LENET5_SMALLEST} pixels, got {image_size}; "
            "set data.image_size"
        )
    after_pools = (image_size // 2 - 4) // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 6, kernel_size=5, padding=2),
        bn1=nn.BatchNorm2d(6, affine=False),
        relu1=activation_function(activation, 6, segments),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, kernel_size=5),
        bn2=nn.BatchNorm2d(16, affine=False),
        relu2=activation_function(activation, 16, segments),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(16 * after_pools**2, 120),
        bn3=nn.BatchNorm1d(120, affine=False),
        relu3=activation_function(activation, 120, segments),
        fc2=nn.Linear(120, 84),
        bn4=nn.BatchNorm1d(84, affine=False),
        relu4=activation_function(activation, 84, segments),
        fc3=nn.Linear(84, classes),
    )
    if batch_norm == "none":
        layers = OrderedDict((k, v) for k, v in layers.items() if not k.startswith("bn"))
    return nn.Sequential(layers)


def _small_resnet(depth: int) -> Callable[..., nn.Module]:
    """Return the builder of the residual network of so many layers, 6n + 2."""

    def build(
        classes: int,
        channels: int,
        image_size: int,
        *,
        shortcut: Shortcut = "average_pool",
        batch_norm: Literal["trained", "fixed"] = "trained",
        activation: Activation = "relu",
        segments: Segments = 3,
    ) -> nn.Module:
        if image_size % 4:
            raise RecipeError(
                f"resnet{depth} halves the images twice, and {image_size} is no multiple of 4; "
                "set data.image_size"
            )
        activate = partial(activation_function, activation, segments=segments)
        affine, blocks = batch_norm == "trained", (depth - 2) // 6
        return SmallResNet(classes, channels, blocks, shortcut, affine=affine, activate=activate)

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    size = f"{RESNETS[depth]} parameters for 10 classes"
    build.__doc__ = f"""Build the ResNet-{depth} for small images: {size}.

    The shortcut halves the size by averaging, as in arXiv:1903.05662, or by leaving out pixels, as
    published weights of the original have it; added channels are zeros. A fixed batch norm, without
    scale and shift, is that of arXiv:1903.05662 too. In place of ReLU there may be functions that
    train, piecewise_linear of so many segments.

    Reference: He et al., 2016, arXiv:1512.03385.
    """
    return build


for _depth in RESNETS:
    MODELS.add(_small_resnet(_depth))


@MODELS.add
def vgg11_cifar(
    classes: int,
    channels: int,
    image_size: int,
    *,
    batch_norm: Literal["trained", "fixed"] = "trained",
) -> nn.Module:
    """Build VGG-11 for small images, with one linear layer: 9.23 million parameters at 32 px.

    A fixed batch norm, without scale and shift, is that of arXiv:1903.05662.

    Reference: Simonyan and Zisserman, 2014, arXiv:1409.1556, configuration A.
    """
    _refuse_smaller("vgg11_cifar", image_size, halved=5)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs, convolutions, pools = channels, 0, 0
    for width in VGG11_WIDTHS:
        if isinstance(width, str):
            pools += 1
            layers[f"pool{pools}"] = nn.MaxPool2d(2)
            continue
        convolutions += 1
        layers[f"conv{convolutions}"] = nn.Conv2d(inputs, width, 3, padding=1)
        layers[f"bn{convolutions}"] = nn.BatchNorm2d(width, affine=batch_norm == "trained")
        layers[f"relu{convolutions}"] = nn.ReLU()
        inputs = width
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(inputs * (image_size // 2**pools) ** 2, classes)
    return nn.Sequential(layers)


@MODELS.add
def mnist_convnet(classes: int, channels: int, image_size: int) -> nn.Module:
    """Build two convolutions and two linear layers: 824,458 parameters for MNIST.

    Average pooling halves the images twice. It is the network of Flax's MNIST example, which the
    code of arXiv:2405.05171 seems to have trained.
    """
    _refuse_smaller("mnist_convnet", image_size, halved=2)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, kernel_size=3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.AvgPool2d(2),
            conv2=nn.Conv2d(32, 64, kernel_size=3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * (image_size // 4) ** 2, 256),
            relu3=nn.ReLU(),
            fc2=nn.Linear(256, classes),
        )
    )


@MODELS.add
def binarynet(classes: int, channels: int, image_size: int, *, width: Width = 1.0) -> nn.Module:
    """Build BinaryNet for small images: 14.0 million parameters at width 1 and 32 px.

    Max pooling comes before the batch norm, and a hard tanh where a binarized network takes signs:
    quantize activations with 1 bit and grid mid_rise. Width multiplies all channels.

    Reference: Courbariaux et al., 2016, arXiv:1602.02830, section 2.3 for CIFAR-10.
    """
    _refuse_smaller("binarynet", image_size, halved=3)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = channels
    for index, full in enumerate(BINARYNET_WIDTHS, start=1):
        outputs = widened(full, width)
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
        if index % 2 == 0:
            layers[f"pool{index // 2}"] = nn.MaxPool2d(2)
        layers[f"bn{index}"] = nn.BatchNorm2d(outputs)
        layers[f"tanh{index}"] = nn.Hardtanh()
        inputs = outputs
    layers["flatten"] = nn.Flatten()
    inputs *= (image_size // 8) ** 2
    for index in (1, 2):
        hidden = widened(BINARYNET_HIDDEN, width)
        layers[f"fc{index}"] = nn.Linear(inputs, hidden)
        layers[f"bn{6 + index}"] = nn.BatchNorm1d(hidden)
        layers[f"tanh{6 + index}"] = nn.Hardtanh()
        inputs = hidden
    layers["fc3"] = nn.Linear(inputs, classes)
    layers["bn9"] = nn.BatchNorm1d(classes)
    return nn.Sequential(layers)


@MODELS.add
def mobilenet_v1(classes: int, channels: int, image_size: int, *, width: Width = 1.0) -> nn.Module:
    """Build MobileNet: 4.23 million parameters at width 1 for 1,000 classes.

    Width multiplies all channels. Images are halved five times, rounding up, so any size will do.

    Reference: Howard et al., 2017, arXiv:1704.04861, table 1.
    """
    del image_size
    return mobilenet(classes, channels, width)


@MODELS.add
def resnet50_v1(classes: int, channels: int, image_size: int) -> nn.Module:
    """Build ResNet-50 as first published: its first 1x1 convolutions take the strides.

    torchvision's `resnet50`, called v1.5, leaves them to the 3x3 convolutions; its weights fit.

    Reference: He et al., 2015, arXiv:1512.03385, table 1.
    """
    from torchvision.models.resnet import Bottleneck, resnet50  # here: loading it takes seconds

    del image_size
    model = resnet50(weights=None, num_classes=classes)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    if channels != model.conv1.in_channels:
        model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        initialize_convolutions(model.conv1)
    return model


@MODELS.add
def resnet50_v2(classes: int, channels: int, image_size: int) -> nn.Module:
    """Build ResNet-50 with batch norm and ReLU before each convolution: 25.5 million parameters.

    Reference: He et al., 2016, arXiv:1603.05027.
    """
    del image_size
    return PreActivationResNet(classes, channels)


@MODELS.add
def two_linear_layers(
    classes: int,
    channels: int,
    image_size: int,
    *,
    columns: Whole,
    rows: Whole = 1,
    hidden: Whole = 1,
    output: Output = "trained",
    initial_std: Annotated[float, Field(gt=0)] = 1.0,
) -> nn.Module:
    """Build two linear layers without biases around a ReLU; the rows of an input share the first.

    With hidden 1 it is the network of Yin et al., 2019, arXiv:1903.05662; with one row and a fixed
    output that of Long et al., 2020, arXiv:2011.11256. The sizes of the data are not used: rows and
    columns cut up whatever values there are. Weights start as N(0, initial_std^2).
    """
    del channels, image_size
    return TwoLinearLayers(
        classes,
        rows=rows,
        columns=columns,
        hidden=hidden,
        output=output,
        initial_std=initial_std,
    )


def _refuse_smaller(name: str, image_size: int, halved: int) -> None:
    """Check that of images that are halved so often at least one pixel is left."""
    if image_size < 2**halved:
        raise RecipeError(
            f"{name} halves the images {TIMES[halved]}, so they need {2**halved} pixels, "
            f"got {image_size}; set data.image_size"
        )
