"""What is measured once, at the end of a run: its results, and the arrays that its figures show.

Shapes: N pairs, P residues, F frequencies of the operation's group, I and J its elements.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from least_action.config import TrainerConfig
from least_action.data import Pairs, all_pairs
from least_action.events import find_events
from least_action.metrics.fourier import character_power, embedding_fourier_norms, grid_logits
from least_action.metrics.numerics import find_slingshots
from least_action.metrics.routing import dominant_head, head_utilization
from least_action.model import GrokTransformer, OneHotModel, PairModel, count_trained_values

SLINGSHOT_WINDOW = 10
"""Evaluations over which a tenfold rise of the training loss counts as a slingshot."""


def results(rows: Sequence[dict[str, Any]], config: TrainerConfig, model: PairModel) -> dict[str, Any]:
    """The metrics of results.json, from a run's evaluations; events that did not happen are None."""
    last = rows[-1]
    collapsed = [row["softmax_collapse"] for row in rows if "softmax_collapse" in row]
    return {
        **{name: last[name] for name in ("epoch", "step", "train_loss", "test_loss", "train_acc", "test_acc")},
        "best_test_acc": max(row["test_acc"] for row in rows),
        **find_events(rows, config.p, config.event_window).as_dict(),
        "slingshots": len(find_slingshots([row["train_loss"] for row in rows], SLINGSHOT_WINDOW)),
        "evaluations_with_softmax_collapse": sum(share > 0 for share in collapsed),
        "evaluations_looked_at_for_it": len(collapsed),
        "largest_softmax_collapse": max(collapsed),
        "parameters": count_trained_values(model),
    }


@torch.no_grad()
def figure_arrays(model: PairModel, config: TrainerConfig) -> dict[str, Tensor]:
    """embedding_power_F and logit_power_F (shares by frequency), class_logits_IJ (one class, centred), and for each routed
    layer k dominant_head_k_PP (NaN where the operation is undefined) and head_use_k_R; of S5 no spectra."""
    pairs = all_pairs(config.p, config.operation)
    device = next(model.parameters()).device
    output = model.forward_pairs(pairs.a_N.to(device), pairs.b_N.to(device))
    arrays = {} if config.operation == "compose" else _spectra(model, output.logits_NP.cpu(), pairs, config)
    for layer, weights_NR in enumerate(output.routing):
        grid_PP = torch.full((config.p, config.p), float("nan"))
        grid_PP[pairs.a_N, pairs.b_N] = dominant_head(weights_NR.cpu()).float()
        arrays |= {f"dominant_head_{layer}_PP": grid_PP, f"head_use_{layer}_R": head_utilization(weights_NR)}
    return arrays


def _spectra(model: PairModel, logits_NP: Tensor, pairs: Pairs, config: TrainerConfig) -> dict[str, Tensor]:
    """The arrays in the characters of the operation's group."""
    grid_IJK = grid_logits(logits_NP, pairs, config.p, config.operation)
    if isinstance(model, OneHotModel):
        table_PD = model.input.weight.T[: config.p]
    else:
        assert isinstance(model, GrokTransformer)
        table_PD = model.token.weight[: config.p]
    norms_B = embedding_fourier_norms(table_PD.detach().cpu(), config.p, config.operation)
    power_F = torch.nn.functional.pad(norms_B.square(), (0, len(norms_B) % 2)).reshape(-1, 2).sum(dim=1)
    return {
        "embedding_power_F": power_F / power_F.sum(),
        "logit_power_F": character_power(grid_IJK).share_F,
        "class_logits_IJ": (grid_IJK - grid_IJK.mean(dim=(0, 1)))[:, :, 1],
    }
