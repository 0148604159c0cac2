"""Paper 1, "Explaining Deep Neural Network Compression Through a Probabilistic Latent Space" (arXiv 2403.00155).

Names are loaded when they are first used: reading the rules of a paper imports neither torch nor pandas.
"""

import lazy_loader

MEASURES = """
    ap2 effective_number effective_sparsity entry_divergences equal_covariance_divergences fisher_covariance
    gaussian_performance_bound group_means kl_gaussian kl_gaussian_printed kl_student_t kl_student_t_monte_carlo
    mahalanobis nondiagonal_precision_code performance_bound permute_pruned precision_range prune_highest_code
    random_direction random_mask_code recovered_squared_distance sign_flips t_ap3 total_variation_lower_bound
    wasserstein_gaussian
"""

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["trials"], {"measures": MEASURES.split(), "network": ["sparsify", "tolerance"]}
)
