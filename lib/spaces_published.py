"""Published pruned networks in the coordinates of paper 3: EagleEye's ResNet-50 recipes, and results of other authors.

None of them is paper 3's own: its tables are not available.
"""

import numpy as np
import pandas as pd

from lib import channels, models, spaces
from lib.channels import Groups
from lib.spaces import Regime

# Widths of EagleEye's three ResNet-50s: n - floor(ratio * n) of the ratios in its `search_results` (commit ba312d9);
# stem, then by stage both inner convolutions of each block, then the stage's stream.
EAGLEEYE = {
    "3G": [62, 57, 56, 46, 46, 50, 60, 210, 124, 124, 98, 105, 115, 117, 94, 91, 471, 237, 201, 241, 217, 223, 225]
    + [205, 255, 227, 215, 212, 185, 914, 476, 412, 410, 387, 408, 491, 1970],
    "2G": [58, 46, 35, 35, 39, 34, 36, 200, 111, 78, 123, 89, 89, 71, 79, 79, 361, 225, 197, 217, 160, 208, 179]
    + [173, 161, 246, 180, 153, 150, 568, 407, 309, 382, 299, 356, 440, 1947],
    "1G": [52, 51, 35, 22, 19, 13, 46, 92, 111, 86, 33, 55, 37, 79, 31, 58, 272, 229, 183, 114, 119, 197, 57]
    + [138, 130, 56, 96, 199, 78, 324, 158, 415, 140, 246, 425, 362, 944],
}
# Kept share, largest ratio of the random search (the smallest is 0) and top-1 accuracy (%) on ImageNet.
EAGLEEYE_SEARCH = {"3G": (0.75, 0.4, 77.1), "2G": (0.50, 0.7, 76.4), "1G": (0.25, 0.8, 74.2)}
EAGLEEYE_TOLERANCE = 0.005  # absolute, on the kept share

# Kept MACs and parameters, each against the dense count of the same counter, and accuracy (%), as the authors publish.
COLUMNS = ["method", "network", "dataset", "kept_macs", "kept_parameters", "accuracy"]
RESULTS = [
    ("uniform 0.75x", "resnet50", "imagenet", 2.322677760 / 4.089184256, 14.771992 / 25.557032, 74.8),
    ("uniform 0.5x", "resnet50", "imagenet", 1.052311552 / 4.089184256, 6.917640 / 25.557032, 72.0),
    ("ABCPruner-100", "resnet50", "imagenet", 2.556 / 4.136, 18.02 / 25.557, 74.84),
    ("ABCPruner-80", "resnet50", "imagenet", 1.891 / 4.136, 11.75 / 25.557, 73.86),
    ("ABCPruner-70", "resnet50", "imagenet", 1.794 / 4.136, 11.24 / 25.557, 73.52),
    ("ABCPruner-50", "resnet50", "imagenet", 1.295 / 4.136, 9.1 / 25.557, 72.58),
    ("ABCPruner-30", "resnet50", "imagenet", 0.945 / 4.136, 7.35 / 25.557, 70.29),
    ("ABCPruner", "resnet56", "cifar10", 58.54 / 127.62, 0.39 / 0.853018, 93.23),
    ("ABCPruner", "resnet110", "cifar10", 89.87 / 257.08, 0.56 / 1.727962, 93.58),
    ("ABCPruner", "vgg16", "cifar10", 82.81 / 314.59, 1.67 / 14.724042, 93.08),
]


def eagleeye_groups() -> Groups:
    """The 37 channel groups of torchvision's ResNet-50 at 224 pixels, in the order of EagleEye's recipes."""
    order = ["conv1"]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        order += [f"layer{stage}.{block}.conv{place}" for block in range(blocks) for place in (1, 2)]
        order.append(f"layer{stage}.0.conv3")
    return channels.find(models.build("resnet50", form="imagenet", classes=1000, size=224), 224).only(order)


def eagleeye_population(groups: Groups, name: str, n: int, seed: int = 0) -> np.ndarray:
    """n random recipes (n, 37) as the search for a published recipe drew them, with its rounding and tolerance."""
    kept, largest, _ = EAGLEEYE_SEARCH[name]
    regime = Regime(kept, tolerance=EAGLEEYE_TOLERANCE / kept)
    return spaces.sample_recipes(groups, regime, n, seed=seed, ratios=(0, largest), rounding=spaces.floored).widths


def eagleeye_places(n: int, seed: int = 0) -> pd.DataFrame:
    """The published recipes' coordinates, and where mCB and STD lie among n random recipes of the same search.

    Returns: a row a recipe, with `mcb_percentile`, `std_percentile` in [0, 100], and the population's medians.
    """
    groups, rows = eagleeye_groups(), []
    for name, widths in EAGLEEYE.items():
        own = spaces.coordinates(groups, np.array([widths])).iloc[0]
        population = spaces.coordinates(groups, eagleeye_population(groups, name, n, seed))
        row = {"recipe": name, "accuracy": EAGLEEYE_SEARCH[name][2]} | own.to_dict()
        for column in ("mcb", "std"):
            row[f"{column}_percentile"] = 100 * float((population[column] < own[column]).mean())
            row[f"{column}_median"] = float(population[column].median())
        rows.append(row)
    return pd.DataFrame(rows)


def results() -> pd.DataFrame:
    """Results of other authors with their normalised mCB: kept MACs over kept parameters."""
    table = pd.DataFrame(RESULTS, columns=COLUMNS)
    return table.assign(mcb=table["kept_macs"] / table["kept_parameters"])
