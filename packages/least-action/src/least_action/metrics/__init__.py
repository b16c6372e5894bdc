"""What is measured of a network while it trains.

Names ending in `_original` follow the formulas of the original study, for comparison with its figures;
where the two differ, the plain name is the correct quantity.
"""

from least_action.metrics.curvature import (
    Estimate,
    compute_fisher_trace,
    compute_gradient_norm,
    compute_hessian_trace,
    compute_jacobian_norm,
    compute_jacobian_norm_original,
    compute_weight_hessian_trace,
)
from least_action.metrics.fourier import (
    CharacterPower,
    ProgressMeasures,
    WeightGinis,
    character_power,
    embedding_fourier_norms,
    find_key_frequencies,
    gini,
    gini_coefficient,
    grid_logits,
    group_coordinates,
    low_frequency_share,
    progress_measures,
    spectral_smoothness,
    spectral_smoothness_original,
    weight_ginis,
)
from least_action.metrics.model_properties import (
    compute_layer_weight_norms,
    compute_representation_norm,
    decayed_weight_norm,
    representation_norm,
    total_weight_norm,
)
from least_action.metrics.numerics import find_slingshots, logit_scale, softmax_collapse
from least_action.metrics.optimizer import AdamMetrics, compute_adam_metrics
from least_action.metrics.routing import (
    PathSignatures,
    dominant_head,
    head_utilization,
    mean_entropy,
    path_signatures,
    routing_entropy,
)

__all__ = [
    "AdamMetrics",
    "CharacterPower",
    "Estimate",
    "PathSignatures",
    "ProgressMeasures",
    "WeightGinis",
    "character_power",
    "compute_adam_metrics",
    "compute_fisher_trace",
    "compute_gradient_norm",
    "compute_hessian_trace",
    "compute_jacobian_norm",
    "compute_jacobian_norm_original",
    "compute_layer_weight_norms",
    "compute_representation_norm",
    "compute_weight_hessian_trace",
    "decayed_weight_norm",
    "dominant_head",
    "embedding_fourier_norms",
    "find_key_frequencies",
    "find_slingshots",
    "gini",
    "gini_coefficient",
    "grid_logits",
    "group_coordinates",
    "head_utilization",
    "logit_scale",
    "low_frequency_share",
    "mean_entropy",
    "path_signatures",
    "progress_measures",
    "representation_norm",
    "routing_entropy",
    "softmax_collapse",
    "spectral_smoothness",
    "spectral_smoothness_original",
    "total_weight_norm",
    "weight_ginis",
]
