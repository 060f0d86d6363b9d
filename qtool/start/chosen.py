"""The network and the training that suit a folder of images, by their number and their size."""

from dataclasses import dataclass

from qtool.models.published import can_be_had
from qtool.start.looked import Looked

SMALL = 64  # pixels: up to here published weights, made at 224, have little to see
FEW = 5_000  # training images, up to which a small network does from nothing
VIEWS = {"published": 20_000, "nothing": 100_000}  # images that training shows, again or not
EPOCHS = {"published": (5, 30), "nothing": (10, 50)}  # at least, at most
OUTER = {"resnet18": ("conv1", "fc"), "resnet20": ("conv1", "linear")}
RATE = {"published": 0.01, "nothing": 0.05}


@dataclass(frozen=True)
class Chosen:
    """What a recipe says of network and training, and why.

    Attributes:
        model: name of the network.
        weights: DEFAULT, or none.
        why: the reason for both, a phrase.
        image_size: pixels.
        outer: its first and its last layer, by name.
        batch_size: images in a step.
        epochs: passes over the training images.
        rate: where the learning rate starts.
    """

    model: str
    weights: str
    why: str
    image_size: int
    outer: tuple[str, str]
    batch_size: int
    epochs: int
    rate: float


def choose(looked: Looked) -> Chosen:
    """Return what suits a folder of images.

    Photographs get a ResNet-18 with published weights, where those can be had here; small images,
    and photographs without such weights, a network that starts from nothing.
    """
    images, _ = looked.sizes
    small = looked.side <= SMALL
    if not small and can_be_had("resnet18", "DEFAULT"):
        return _chosen("resnet18", "DEFAULT", "it has seen ImageNet", 224, images)
    few = images <= FEW
    model = "resnet20" if few else "resnet18"
    number = "few" if few else "many"
    why = "small images" if small else "published weights cannot be had here"
    size = max(16, -(-looked.side // 4) * 4) if small else SMALL if few else 2 * SMALL
    return _chosen(model, "none", f"{why}, and images are {number}", size, images)


def _chosen(model: str, weights: str, why: str, size: int, images: int) -> Chosen:
    kind = "nothing" if weights == "none" else "published"
    least, most = EPOCHS[kind]
    return Chosen(
        model=model,
        weights=weights,
        why=why,
        image_size=size,
        outer=OUTER[model],
        batch_size=next((size for size in (64, 32, 16) if size * 16 <= images), 8),
        epochs=min(max(round(VIEWS[kind] / images), least), most),
        rate=RATE[kind],
    )
