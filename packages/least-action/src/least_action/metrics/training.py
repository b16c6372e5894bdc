"""A row of a run's history, and how it is measured."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from least_action.config import TrainerConfig
from least_action.data import ModularArithmeticDataset, Pairs
from least_action.events import has_touched_99, may_begin
from least_action.losses import data_loss
from least_action.metrics.curvature import (
    compute_fisher_trace,
    compute_gradient_norm,
    compute_hessian_trace,
    compute_jacobian_norm,
    compute_weight_hessian_trace,
)
from least_action.metrics.fourier import (
    character_power,
    grid_logits,
    progress_measures,
    spectral_smoothness,
    spectral_smoothness_original,
    weight_ginis,
)
from least_action.metrics.model_properties import (
    compute_layer_weight_norms,
    decayed_weight_norm,
    representation_norm,
    total_weight_norm,
)
from least_action.metrics.numerics import logit_scale, softmax_collapse
from least_action.metrics.optimizer import compute_adam_metrics
from least_action.metrics.routing import head_utilization, path_signatures, routing_entropy
from least_action.model import Output, PairModel, total_norm, trainable_parameters
from least_action.model.parameter_roles import decayed_parameters
from least_action.recipes import learning_rate
from studycore.streams import generator


@dataclass
class TrainingMetrics:
    """One row; None is "not measured at this step". Losses and accuracies are means over all pairs of the split."""

    step: int
    """Updates so far."""
    epoch: int
    train_loss: float | None = None
    test_loss: float | None = None
    train_acc: float | None = None
    test_acc: float | None = None
    new_pairs_acc: float | None = None
    """Accuracy on held-out pairs (a, b) of which (b, a) is held out too; a network that treats a and b alike knows the
    others from training when the operation is commutative."""

    spectral_smoothness: float | None = None
    """Low-frequency share of the centred logits' power in the operation's own group; higher is smoother."""
    spectral_smoothness_original: float | None = None
    """The same of the predicted class as a number, constant included, on the residues."""
    aligned_power: float | None = None
    """Share of the logits' power that depends on the operation's result only; noise: 1 / (n + 1)."""
    key_frequencies: str | None = None
    """Frequencies of the result with more power than chance, as text."""
    key_share: float | None = None
    restricted_loss: float | None = None
    excluded_loss: float | None = None
    restricted_acc: float | None = None
    """Accuracy on all pairs of the key frequencies alone."""
    excluded_acc: float | None = None
    """Accuracy on held-out pairs without them."""
    gini_embedding: float | None = None
    gini_neuron_to_logit: float | None = None
    """Of the paper's W_L."""
    gini_unembedding: float | None = None

    jacobian_norm: float | None = None
    """Mean squared Frobenius norm of d logits / d continuous input."""
    hessian_trace: float | None = None
    """Mean trace of the argmax logit's Hessian in the continuous input."""
    hessian_trace_se: float | None = None
    representation_norm: float | None = None
    weight_norm: float | None = None
    decayed_weight_norm: float | None = None
    layer_weight_norms: dict[str, float] | None = None
    """By the name of the module; a column layer_weight_norm_<name> each."""
    logit_scale: float | None = None
    softmax_collapse: float | None = None
    """Share of training pairs whose sum of exponentials is exactly 1 in float32."""
    train_loss_float32: float | None = None
    """The training loss computed in float32: 0 where softmax collapse has taken what float64 still has."""
    routing_entropy: float | None = None
    """Mean over layers, nats."""
    routing_max_use: float | None = None
    """Largest mean weight of a head, over heads and layers."""
    routing_paths: int | None = None
    """Distinct dominant-head paths over all pairs."""

    gradient_norm: float | None = None
    weight_hessian_trace: float | None = None
    weight_hessian_trace_se: float | None = None
    weight_hessian_per_loss: float | None = None
    """The trace over the training loss, since the trace falls as the loss saturates."""
    weight_hessian_scale_free: float | None = None
    """The trace times the squared norm of the trained weights: the same for all scales of a net that ignores them."""
    fisher_trace: float | None = None
    fisher_trace_se: float | None = None

    lr: float | None = None
    effective_lr_mean: float | None = None
    effective_lr_max: float | None = None
    adam_ratio_mean: float | None = None
    adam_ratio_max: float | None = None
    update_decay_ratio: float | None = None
    effective_lr_mean_original: float | None = None
    effective_lr_max_original: float | None = None
    adam_ratio_mean_original: float | None = None
    adam_ratio_max_original: float | None = None
    update_decay_ratio_original: float | None = None

    def row(self) -> dict[str, Any]:
        """What was measured; a value that is not finite counts as not measured."""
        values = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "layer_weight_norms"]
        norms = self.layer_weight_norms or {}
        values += [(f"layer_weight_norm_{name.replace('.', '_')}", norm) for name, norm in norms.items()]
        return {k: v for k, v in values if v is not None and not (isinstance(v, float) and not math.isfinite(v))}

    def console(self) -> str:
        """The original study's line."""
        text = f"Epoch {self.epoch:7d} | Train: {_percent(self.train_acc)} | Test: {_percent(self.test_acc)} | "
        text += f"Loss: {self.train_loss:.2e}"
        norm, smooth, jacobian = self.representation_norm, self.spectral_smoothness, self.jacobian_norm
        for name, value, form in (("rnorm", norm, ".1f"), ("smooth", smooth, ".3f"), ("jac", jacobian, ".2e")):
            text += "" if value is None else f", {name}={value:{form}}"
        return text + ("" if self.hessian_trace is None else f", |hess|={abs(self.hessian_trace):.2e}")


@dataclass(frozen=True)
class Probe:
    """The fixed samples that metrics use, drawn from streams of their own."""

    data: ModularArithmeticDataset
    all: Pairs
    train_mask_N: Tensor
    new_mask_N: Tensor
    """Held-out pairs whose mirror image is held out too."""
    sensitivity: Pairs
    """Held-out pairs for input derivatives."""
    fisher: Pairs
    """Training pairs for the Fisher trace."""

    @classmethod
    def draw(cls, data: ModularArithmeticDataset, config: TrainerConfig, device: str) -> "Probe":
        mask_N = torch.zeros(len(data.pairs), dtype=torch.bool)
        mask_N[data.train_index] = True
        samples = []
        for name, pairs in (("sensitivity", data.test), ("fisher", data.train)):
            order = torch.randperm(len(pairs), generator=generator(config.split_seed, "metrics", name))
            samples.append(pairs[order[: config.metric_samples]].to(device))
        trained_PP = torch.zeros(config.p, config.p, dtype=torch.bool)
        trained_PP[data.train.a_N, data.train.b_N] = True
        new_N = ~mask_N & ~trained_PP[data.pairs.b_N, data.pairs.a_N]
        return cls(data, data.pairs.to(device), mask_N.to(device), new_N.to(device), samples[0], samples[1])


def measure_basics(output: Output, probe: Probe, config: TrainerConfig) -> dict[str, float]:
    """Loss and accuracy on both splits, from one pass over all pairs."""
    loss, right_N, basics = data_loss(config), output.logits_NP.argmax(dim=-1) == probe.all.y_N, {}
    for split, mask_N in (("train", probe.train_mask_N), ("test", ~probe.train_mask_N)):
        basics[f"{split}_loss"] = loss(output.logits_NP[mask_N], probe.all.y_N[mask_N]).item()
        basics[f"{split}_acc"] = right_N[mask_N].double().mean().item()
    if probe.new_mask_N.any():
        basics["new_pairs_acc"] = right_N[probe.new_mask_N].double().mean().item()
    return basics


def measure_function(model: PairModel, output: Output, probe: Probe, config: TrainerConfig) -> dict[str, Any]:
    """Spectra, norms and numerics."""
    p, operation = config.p, config.operation
    training_NP, y_N = output.logits_NP[probe.train_mask_N], probe.all.y_N[probe.train_mask_N]
    decayed = decayed_parameters(model, config.weight_decay_rule, config.decay_gates)
    # The original study's formula needs the whole p x p grid of residues, which division has not.
    whole = len(probe.all) == p * p
    measured: dict[str, Any] = {
        "spectral_smoothness_original": spectral_smoothness_original(output.logits_NP.argmax(-1).reshape(p, p), p // 4)
        if whole
        else None,
        "representation_norm": representation_norm(output.representation_ND[~probe.train_mask_N]),
        "decayed_weight_norm": decayed_weight_norm(model, decayed),
        "layer_weight_norms": compute_layer_weight_norms(model),
        "logit_scale": logit_scale(output.logits_NP),
        "softmax_collapse": softmax_collapse(training_NP, torch.float32),
        "train_loss_float32": data_loss(replace(config, loss_dtype="float32"))(training_NP, y_N).item(),
    }
    if operation != "compose":  # S5 does not commute: its spectra would need its irreducible representations
        grid_IJK = grid_logits(output.logits_NP, probe.all, p, operation)
        ginis = weight_ginis(model, operation)
        measured |= {
            "spectral_smoothness": spectral_smoothness(grid_IJK),
            "aligned_power": character_power(grid_IJK).aligned,
            "gini_embedding": ginis.embedding,
            "gini_neuron_to_logit": ginis.neuron_to_logit,
            "gini_unembedding": ginis.unembedding,
        }
    return measured


def measure_routing(output: Output) -> dict[str, Any]:
    """The gates on all pairs; empty without any. Also measured where an event may begin."""
    if not output.routing:
        return {}
    entropies = [routing_entropy(weights_NR) for weights_NR in output.routing]
    return {
        "routing_entropy": sum(entropies) / len(entropies),
        "routing_max_use": max(head_utilization(weights_NR).max().item() for weights_NR in output.routing),
        "routing_paths": path_signatures(output.routing).distinct,
    }


def measure_progress(model: PairModel, output: Output, probe: Probe, config: TrainerConfig) -> dict[str, Any]:
    """Nanda et al.'s progress measures and the norm of the weights: what is also measured where an event may begin."""
    measured: dict[str, Any] = {"weight_norm": total_weight_norm(model)}
    if config.operation == "compose":
        return measured
    mask_N, loss = probe.train_mask_N, data_loss(config)
    progress = progress_measures(output.logits_NP, probe.all, mask_N, config.p, config.operation, loss)
    return {
        **measured,
        **dataclasses.asdict(progress),
        "key_frequencies": " ".join(map(str, progress.key_frequencies)),
    }


def measure_sensitivity(model: PairModel, probe: Probe, config: TrainerConfig, epoch: int) -> dict[str, float]:
    """How the logits of held-out pairs move with the continuous input."""
    x = model.plain_inputs(probe.sensitivity.a_N, probe.sensitivity.b_N)
    hessian = compute_hessian_trace(model, x, config.curvature_probes, generator(config.seed, "hessian", epoch))
    return {
        "jacobian_norm": compute_jacobian_norm(model, x),
        "hessian_trace": hessian.value,
        "hessian_trace_se": hessian.standard_error,
    }


def measure_weight_curvature(
    model: PairModel, probe: Probe, config: TrainerConfig, epoch: int, train_loss: float
) -> dict[str, float | None]:
    """Gradient norm and traces of the training loss (data part) in the weights."""
    loss, train = data_loss(config), probe.all[probe.train_mask_N]
    stream = generator(config.seed, "weight hessian", epoch)
    hessian = compute_weight_hessian_trace(model, train, loss, config.curvature_probes, stream)
    fisher = compute_fisher_trace(model, probe.fisher, loss)
    norm = float(total_norm(trainable_parameters(model).values(), torch.float64))
    return {
        "gradient_norm": compute_gradient_norm(model, train, loss),
        "weight_hessian_trace": hessian.value,
        "weight_hessian_trace_se": hessian.standard_error,
        "weight_hessian_per_loss": hessian.value / train_loss if train_loss > 0 else None,
        "weight_hessian_scale_free": hessian.value * norm**2,
        "fisher_trace": fisher.value,
        "fisher_trace_se": fisher.standard_error,
    }


def measure_adam(
    model: PairModel, state: Mapping[str, Tensor], config: TrainerConfig, lr: float
) -> dict[str, float | None]:
    """Adam's dynamics from its state by name, in the update at the rate `lr` that led to it; empty before the first."""
    moments = {
        key: {n.rpartition("/")[0]: t for n, t in state.items() if n.endswith(f"/{key}")}
        for key in ("exp_avg", "exp_avg_sq", "step")
    }
    if not moments["exp_avg"]:
        return {}
    parameters = {name: q.detach() for name, q in model.named_parameters() if name in moments["exp_avg"]}
    adam = compute_adam_metrics(
        parameters,
        moments["exp_avg"],
        moments["exp_avg_sq"],
        step=int(next(iter(moments["step"].values()))),
        lr=lr,
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        decayed=decayed_parameters(model, config.weight_decay_rule, config.decay_gates),
    )
    return dataclasses.asdict(adam)


def measure(
    model: PairModel,
    adam_state: Mapping[str, Tensor],
    probe: Probe,
    config: TrainerConfig,
    epoch: int,
    step: int,
    last: bool,
    rows: Sequence[dict[str, Any]] = (),
) -> TrainingMetrics:
    """The row due at this epoch: losses and accuracies always, the rest at its intervals and at the end.

    Where an event may begin, by the `rows` so far, curvature, progress and gates are measured as well. `adam_state` is the
    optimizers' by name, as studycore.checkpoints.optimizer_tensors gives it.
    """
    measured: dict[str, Any] = {}
    with torch.no_grad():
        output = model.forward_pairs(probe.all.a_N, probe.all.b_N)
        basics = measure_basics(output, probe, config)
        event = may_begin(rows, basics["train_acc"], basics["test_acc"], config.event_window)
        detailed = last or epoch % config.log_every == 0
        curved = last or event or epoch % config.weight_curvature_interval == 0
        if detailed or event:
            measured |= measure_progress(model, output, probe, config) | measure_routing(output)
        if detailed:
            measured |= measure_function(model, output, probe, config)
            measured["lr"] = learning_rate(epoch, config, has_touched_99([*rows, basics]))
            if config.compute_optimizer_metrics:
                before = learning_rate(max(epoch - 1, 0), config, has_touched_99(rows))
                measured |= measure_adam(model, adam_state, config, before)
        if last or epoch % (config.sensitivity_every or config.eval_every) == 0:
            measured |= measure_sensitivity(model, probe, config, epoch)
    if curved and config.compute_weight_curvature:
        measured |= measure_weight_curvature(model, probe, config, epoch, basics["train_loss"])
    return TrainingMetrics(step=step, epoch=epoch, **(measured | basics))


def _percent(share: float | None) -> str:
    return "     ?" if share is None else f"{100 * share:5.1f}%"
