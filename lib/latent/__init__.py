"""Paper 1, "Explaining Deep Neural Network Compression Through a Probabilistic Latent Space" (arXiv 2403.00155).

Names are loaded when they are first used: reading the rules of a paper imports neither torch nor pandas.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "measures": [
            "ap2",
            "approximate_ap3_gaps",
            "epoch_series",
            "equal_covariance_divergences",
            "fisher_covariance",
            "gaussian_ap3_code",
            "gaussian_performance_bound",
            "gaussian_performance_bound_printed",
            "group_means",
            "kl_gaussian",
            "kl_gaussian_printed",
            "kl_lower_bound",
            "kl_sandwich",
            "kl_student_t",
            "kl_student_t_monte_carlo",
            "lambda_factor",
            "mahalanobis",
            "nondiagonal_precision_code",
            "performance_bound",
            "permute_pruned",
            "precision_range",
            "prune_highest_code",
            "random_direction",
            "random_mask_code",
            "recovered_squared_distance",
            "scale_ap2",
            "sign_flips",
            "student_t_variance",
            "t_ap3",
            "total_variation_lower_bound",
            "vacuous_factor",
            "wasserstein_gaussian",
        ],
    },
)
