"""Paper 2, "Tensor network compressibility of convolutional models" (arXiv 2403.14379).

Names are loaded when they are first used: reading the rules of a paper imports neither torch nor pandas.
"""

import lazy_loader

MEASURES = """
    JOINT2 effective_norm_loss effective_rank entropy graded norm_loss output_error output_weights patch_moment
    relative_error tap_usage truncate truncate_jointly truncate_outputs
"""
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "measures": MEASURES.split(),
        "cuts": ["CUTS", "MODES", "cut_svd", "fold", "spectrum", "unfold"],
        "forms": ["approximate", "best_ranks", "decompose", "factorise"],
        "sweep": ["LayerSweep"],
    },
)
