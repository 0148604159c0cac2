"""What networks, data sets and methods are called; a profile is checked by it without loading torch."""

from lib.provenance import unknown

DEPTHS = (8, 20, 32, 56, 110)
# The forms of each network and the smallest image side (pixels) that each takes. Smaller images would leave no
# feature map, or, in the CIFAR forms, 3x3 kernels on a 1x1 map, where only the centre tap sees the image.
NETWORKS = {
    "linear": {"cifar": 1},
    "mlp": {"cifar": 1},
    "digits_cnn": {"cifar": 4},
    "vanilla_cnn": {"cifar": 16},
    "keras_cnn": {"cifar": 10},
    **{f"resnet{depth}": {"cifar": 5} for depth in DEPTHS},
    "preresnet101": {"cifar": 5},
    "resnet18": {"cifar": 9, "imagenet": 32},
    "resnet50": {"cifar": 9, "imagenet": 32},
    "vgg16": {"cifar": 32, "imagenet": 32},
    "alexnet": {"cifar": 27, "ungrouped": 27, "imagenet": 63},
    "mobilenet_v2": {"cifar": 9, "imagenet": 32},
    "vit_b_16": {"imagenet": 16},
    "vit_tiny": {"cifar": 8},
}
# What may follow a network's name, so that a list of names can tell its forms apart, and the form that it must have.
VARIANTS = {
    "imagenet": "imagenet",  # torchvision's own, stem included
    "224": "imagenet",  # that form behind an upsampling of the images to 224 pixels
    "pretrained": "imagenet",  # the same, with torchvision's ImageNet weights and a new last layer
    "ungrouped": "ungrouped",  # AlexNet for 32 pixels without its two groups, whose filters cannot be pruned one by one
}
# `padding` (pixels) and `flip` are what augmentation may do: a mirrored digit would be another sign.
DATASETS = {
    "digits": {"classes": 10, "channels": 1, "size": 8, "padding": 1, "flip": False},
    "cifar10": {"classes": 10, "channels": 3, "size": 32, "padding": 4, "flip": True},
    "cifar100": {"classes": 100, "channels": 3, "size": 32, "padding": 4, "flip": True},
    "tiny-imagenet": {"classes": 200, "channels": 3, "size": 64, "padding": 8, "flip": True},
    "imagenet": {"classes": 1000, "channels": 3, "size": 224, "padding": 28, "flip": True},
    "digits16": {"classes": 10, "channels": 1, "size": 16, "padding": 2, "flip": False},  # each pixel as four
}
# Networks whose authors publish weights for a data set (`weights.PUBLIC`).
PUBLIC = ("resnet20/cifar10", "resnet56/cifar10", "resnet20/cifar100", "resnet56/cifar100")
SCHEDULES = ("cosine", "one-cycle", "step", "constant")
# Scores by which nodes are removed (`spline_selection.remove`).
SCORES = ("raw", "normalised", "signed", "merged", "magnitude", "slimming", "median", "random")


def split_name(name: str) -> tuple[str, str]:
    """A name of NETWORKS and the variant behind it, or ""; CompanionError for a name or a variant that is unknown."""
    network, _, variant = name.partition("-")
    if network not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    if variant and variant not in VARIANTS:
        raise unknown(f"variant of {network}", variant, VARIANTS)
    if variant and VARIANTS[variant] not in NETWORKS[network]:
        raise unknown(f"form of {network}", VARIANTS[variant], NETWORKS[network])
    return network, variant
