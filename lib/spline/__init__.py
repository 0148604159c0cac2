"""Paper 4, "Max-Affine Spline Insights Into Deep Network Pruning" (arXiv 2101.02338).

Names are loaded when they are first used: reading the rules of a paper imports neither torch nor pandas.
"""

import lazy_loader

MEASURES = (
    "Codes activation_codes canvas choose code_distance coded_layers distance_matrix early_bird_epoch folded "
    "forward_flops mask_early_bird_epoch recent_distance reduced redundancy remove training_flops"
).split()
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"measures": MEASURES, "network": ["merge", "tolerance"], "partition": ["split"]}
)
