"""Analysis of finished and running experiments, for notebooks and for the explorer: no user interface, no training.

from least_action.analysis import ExperimentStore, ExperimentLoader, detect_phases

store = ExperimentStore()  # runs/least-action, or the folder that is given
store.query("SELECT experiment_name, max(test_acc) AS best FROM experiments GROUP BY ALL ORDER BY best DESC")
experiment = ExperimentLoader().load(store.list_experiments()[0])
detect_phases(experiment.history_df).grokking_start
"""

from least_action.analysis.architecture import get_layer_display_name, get_layer_groups, get_layer_names
from least_action.analysis.checkpoints import get_routing_at_step, nearest_checkpoint, snapshot
from least_action.analysis.comparison import (
    align_by_epoch,
    create_sweep_summary,
    differing_fields,
    group_by_hyperparameter,
    seed_bands,
    seed_groups,
    telling_fields,
    time_to_grok,
)
from least_action.analysis.loader import (
    ExperimentData,
    ExperimentLoader,
    get_experiment_group,
    load_sweep_groups,
)
from least_action.analysis.metrics import align_metrics, compute_aggregates_over_history, compute_derived_metrics
from least_action.analysis.phases import GrokkingPhases, analyze_grokking, detect_phases
from least_action.analysis.store import ExperimentStore

__all__ = [
    "ExperimentData",
    "ExperimentLoader",
    "ExperimentStore",
    "GrokkingPhases",
    "align_by_epoch",
    "align_metrics",
    "analyze_grokking",
    "compute_aggregates_over_history",
    "compute_derived_metrics",
    "create_sweep_summary",
    "detect_phases",
    "differing_fields",
    "get_experiment_group",
    "get_layer_display_name",
    "get_layer_groups",
    "get_layer_names",
    "get_routing_at_step",
    "group_by_hyperparameter",
    "load_sweep_groups",
    "nearest_checkpoint",
    "seed_bands",
    "seed_groups",
    "snapshot",
    "telling_fields",
    "time_to_grok",
]
