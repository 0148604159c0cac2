"""Paper 3, "Network Pruning Spaces" (arXiv 2304.09453).

Names are loaded when they are first used: reading the rules of a paper imports neither torch nor pandas.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "measures": [
            "Regime",
            "Sample",
            "best_of_k",
            "complexity_weights",
            "coordinates",
            "edf",
            "floored",
            "kept_shares",
            "mean_computation_budget",
            "ratio_range",
            "recipe_std",
            "refined",
            "resolution",
            "rounded",
            "sample_recipes",
            "uniform_ratio",
            "unique",
        ],
        "network": ["prune", "tolerance"],
    },
)
