"""Four papers on one network: which measure tells the damage beforehand, and which compression wins at equal cost.

Names are loaded when they are first used: reading the rules imports neither torch nor pandas.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["trials", "contest"],
    {"measures": ["BASELINES", "MEASURES", "SET_BY_HAND", "VIEWS", "Dense", "change_of_layer", "reference"]},
)
