"""The README's table has the names of the original study, and its fields and columns are here.

What every README promises alike is tested in tests/test_readmes.py of the repository.
"""

import re
from pathlib import Path

from least_action.config import TrainerConfig
from least_action.metrics.training import TrainingMetrics

README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.split("## From the original study's names")[1].split("\n## ")[0]


def test_the_table_covers_the_original_studys_functions():
    named = {path.rsplit(".", 1)[-1] for path in re.findall(r"`(least_action(?:\.\w+)+)`", TABLE)}
    assert named >= {
        "ModularArithmeticDataset", "SequenceArithmeticDataset", "BaselineMLP", "RoutedNetwork", "GrokTransformer",
        "create_model", "get_representation", "forward_from_embeddings", "get_embeddings", "TrainerConfig", "Trainer",
        "LeastActionLoss", "spectral_smoothness_loss", "jacobian_regularizer", "TrainingMetrics", "MetricsHistory",
        "spectral_smoothness", "compute_jacobian_norm", "compute_hessian_trace", "compute_gradient_norm",
        "compute_weight_hessian_trace", "compute_fisher_trace", "compute_adam_metrics", "AdamMetrics",
        "compute_representation_norm", "compute_layer_weight_norms", "plot_training_curves", "plot_spectral_analysis",
        "plot_routing_heatmap", "save_all_visualizations",
    }  # fmt: skip


def test_the_original_studys_fields_and_columns_are_there():
    fields = TrainerConfig.__dataclass_fields__
    original = (
        "p operation train_frac model_type hidden_dim n_layers n_heads tie_embeddings epochs lr weight_decay optimizer "
        "beta1 beta2 eps grad_clip warmup_epochs routing_regularizer lambda_routing lambda_spectral "
        "compute_weight_curvature weight_curvature_interval compute_optimizer_metrics log_every data_seed seed"
    )
    assert set(original.split()) <= set(fields)
    columns = (
        "epoch train_loss test_loss train_acc test_acc spectral_smoothness jacobian_norm hessian_trace "
        "representation_norm gradient_norm weight_hessian_trace fisher_trace effective_lr_mean effective_lr_max "
        "adam_ratio_mean adam_ratio_max update_decay_ratio"
    )
    assert set(columns.split()) <= set(TrainingMetrics.__dataclass_fields__)
