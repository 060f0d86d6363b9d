"""What the classes of a data set are called, in the order of a network's outputs."""

from collections.abc import Sequence

CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# The file with the names lies beside the images, but images may come as arrays without it.
_CIFAR100_WORDS = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm"""
CIFAR100 = tuple(_CIFAR100_WORDS.split())
FASHION_MNIST = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_KNOWN = {"fashion_mnist": FASHION_MNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}


def class_names(name: str, classes: int) -> tuple[str, ...]:
    """Return the names of the classes of data set `name`; numbers where nothing names them."""
    known = _KNOWN.get(name, ())
    return known if len(known) == classes else tuple(map(str, range(classes)))


def imagenet_names() -> Sequence[str]:
    """Return the names of ImageNet's 1000 classes, as torchvision has them."""
    from torchvision.models import ResNet18_Weights  # here, as loading it takes seconds

    return [str(name) for name in ResNet18_Weights.DEFAULT.meta["categories"]]
