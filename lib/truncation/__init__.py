"""Paper 2, "Tensor network compressibility of convolutional models" (arXiv 2403.14379).

Names are loaded when they are first used: reading the rules of a paper imports neither torch nor pandas.
"""

import lazy_loader

MEASURES = """
    CUTS JOINT2 MODES cut_svd effective_norm_loss effective_rank entropy fold graded norm_loss output_error
    output_weights patch_moment relative_error spectrum tap_usage truncate truncate_jointly truncate_outputs unfold
"""
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "measures": MEASURES.split(),
        "forms": ["approximate", "best_ranks", "decompose", "factorise"],
        "sweep": ["LayerSweep"],
        "network": ["compress", "plan", "tolerance"],
    },
)
