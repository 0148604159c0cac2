"""Paper 2, "Tensor network compressibility of convolutional models" (arXiv 2403.14379).

Names are loaded when they are first used: reading the rules of a paper imports neither torch nor pandas.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "measures": [
            "JOINT2",
            "approximate",
            "correlation_loss",
            "effective_norm_loss",
            "effective_rank",
            "entanglement_entropy",
            "entropy",
            "factorise",
            "graded",
            "norm_loss",
            "output_error",
            "participation_ratio",
            "patch_moment",
            "relative_error",
            "squared_norm_loss",
            "tap_usage",
            "truncate",
            "truncate_jointly",
            "truncate_outputs",
            "truncate_to_loss",
        ],
        "cuts": ["CUTS", "MODES", "cut_svd", "fold", "spectrum", "unfold"],
        "sweep": ["LayerSweep"],
    },
)
