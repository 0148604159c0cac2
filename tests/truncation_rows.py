"""A made-up row of paper 2's single-layer trials, for tests of its statistics."""

import math

ENTRIES = [  # method, cut, rank, target, relative error, wrong, wrong in even places, loss
    ("dense", "", 0, 0.0, 0.0, 10, 4, 0.5),
    ("zero", "", 0, 0.0, 1.0, 90, 45, 3.0),
    ("cut", "OUT", 1, 0.0, 0.8, 30, 14, 1.5),
    ("cut", "OUT", 2, 0.0, 0.4, 10, 4, 0.6),
    ("cut", "KH", 1, 0.0, 0.6, 11, 5, 0.7),
]


def row(layer="a", **change):
    """A row as `truncation_trials.truncate_layer` returns it, with one entry a kernel."""
    names = "method cut rank target relative_error wrong wrong_even loss".split()
    lists = {name: [entry[k] for entry in ENTRIES] for k, name in enumerate(names)}
    lists |= {"norm_loss": [1 - math.sqrt(1 - e**2) for e in lists["relative_error"]], "draw": [0] * 5, "kl": [0.0] * 5}
    lists |= {"effective_norm_loss": lists["norm_loss"], "lost": [0] * 5, "gained": [0] * 5}
    known = {"status": "done", "network": "net", "dataset": "set", "layer": layer, "n": 200, "shape": [8, 4, 3, 3]}
    return known | lists | change
