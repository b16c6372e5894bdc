"""Which value feeds what: claims' columns, rows of the history, cells of the tables, lines of the figures.

Every quantity has a value of its own here, so that none can stand in another's place.
"""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colors, pyplot as plt

import least_action.figures as figures
import least_action.metrics.training as measuring
import least_action.report as reporting
import least_action.train as loop
from least_action.claims import ADAMW, CLAIMS, DENSE, SELECTIVE, columns as columns_of
from least_action.config import SweepConfig, TrainerConfig
from least_action.data import batches, create_dataset
from least_action.events import Events, find_events, held_from_first_touch, last_epoch, may_begin
from least_action.history import MetricsHistory
from least_action.losses import LeastActionLoss, data_loss, jacobian_regularizer, spectral_smoothness_loss
from least_action.metrics.curvature import (
    compute_fisher_trace,
    compute_gradient_norm,
    compute_hessian_trace,
    compute_jacobian_norm,
    compute_weight_hessian_trace,
)
from least_action.metrics.final import results
from least_action.metrics.fourier import character_power, grid_logits, spectral_smoothness, weight_ginis
from least_action.metrics.numerics import logit_scale
from least_action.metrics.training import Probe, measure
from least_action.model import create_model
from least_action.model.parameter_roles import decayed_parameters
from least_action.survival import Survival, kaplan_meier
from studycore.checkpoints import optimizer_tensors
from studycore.metrics_log import read_rows
from studycore.report import NOT_APPLICABLE
from studycore.streams import generator

TRANSFORMER = TrainerConfig(p=7, model_type="transformer", weight_decay=1.0, event_window=2)


# ---------------------------------------------------------------------------------------------------------- the claims
def columns(folder, config):
    """Of a run whose epochs are those of its rows."""
    return columns_of(folder, replace(config, epochs=read_rows(folder / "metrics.jsonl")[-1]["epoch"]))


def folder_of(path, rows):
    path.mkdir(exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": row["epoch"], **row}) + "\n" for row in rows))
    return path


def evaluation(epoch, train_acc, test_acc, **more):
    return {"epoch": epoch, "train_acc": train_acc, "test_acc": test_acc, "train_loss": 0.1, "test_loss": 0.2, **more}


MEASURED_AT_EVENTS = (
    "weight_hessian_trace", "weight_hessian_scale_free", "weight_hessian_per_loss", "restricted_loss", "excluded_loss",
    "hessian_trace", "fisher_trace", "gradient_norm", "weight_hessian_trace_se",
)  # fmt: skip


def grokking(after=3, **last):
    """Rows that memorise at 20 and reach 0.99 at 40; at each epoch every metric has a value of its own."""
    rows = [
        evaluation(epoch, float(epoch >= 20), float(epoch >= 40), new_pairs_acc=0.03 + epoch / 1000)
        | {name: 1 / (2 + i) if epoch >= 40 else 1 + 100 * (epoch != 20) for i, name in enumerate(MEASURED_AT_EVENTS)}
        for epoch in range(0, 60 + 10 * (after - 1) + 1, 10)
    ]
    rows[-1] |= last
    return rows


def test_each_metric_is_read_at_memorisation_and_at_grokking(tmp_path):
    found = columns(folder_of(tmp_path / "run", grokking()), TRANSFORMER)
    assert [found[f"{name}_memorised"] for name in MEASURED_AT_EVENTS[:5]] == [1, 1, 1, 1, 1]
    assert [found[f"{name}_grokked"] for name in MEASURED_AT_EVENTS[:5]] == [1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]
    assert found["memorises_first"]


@pytest.mark.parametrize("broken", [0.0, -1.0, None])
def test_a_value_that_is_missing_or_not_positive_is_read_as_it_is(broken, tmp_path):
    for epoch, event in ((20, "memorised"), (40, "grokked")):
        rows = grokking()
        (row,) = [row for row in rows if row["epoch"] == epoch]
        row["weight_hessian_trace"] = broken
        found = columns(folder_of(tmp_path / "run", rows), TRANSFORMER)
        assert found.get(f"weight_hessian_trace_{event}") == broken
        assert found["restricted_loss_grokked"] == 1 / 5
    at_once = [row | {"train_acc": row["test_acc"]} for row in grokking()]
    found = columns(folder_of(tmp_path / "run", at_once), TRANSFORMER)
    assert (found["memorised"], found["grokked_99"], found["memorised_by"]) == (40, 40, 40)
    assert not found["memorises_first"]


def test_the_columns_of_a_run_that_groks(tmp_path):
    last = {"restricted_acc": 0.5, "excluded_acc": 0.6, "train_acc": 0.995, "test_acc": 0.991, "train_loss": 0.3, "test_loss": 0.4}  # fmt: skip
    config = replace(TRANSFORMER, operation="subtract", train_frac=0.4, recipe="muon")
    rows = grokking(**last)
    (at_grokking,) = [row for row in rows if row["epoch"] == 40]
    at_grokking |= {"restricted_acc": 0.97, "excluded_acc": 0.02}
    found = columns(folder_of(tmp_path / "run", rows), config)
    expected = {
        "time": 40, "last_epoch": 80, "memorised_by": 20, "grokked": True, "censored": False, "has_memorised": True,
        "new_at_memorised": 0.05, "test_at_memorised": 0.0, "restricted_acc_grokked": 0.97, "excluded_acc_grokked": 0.02,
        "highest_new_accuracy": 0.06, "has_plateau": True,
        "train_acc": 0.995, "test_acc": 0.991, "train_loss": 0.3, "test_loss": 0.4, "kind": DENSE, "decay": "runs with it",
        "recipe": "muon", "operation": "subtract", "train_frac": 0.4, "weight_decay": 1.0, "routing": "dense runs",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert "published" not in found and "gate_max_use" not in found


def test_the_columns_of_a_run_that_does_not(tmp_path):
    rows = [row | {"test_acc": 0.3} for row in grokking(restricted_acc=0.9, excluded_acc=0.1)]
    found = columns(folder_of(tmp_path / "run", rows), replace(TRANSFORMER, weight_decay=0.0))
    assert (found["time"], found["grokked"], found["censored"], found["has_memorised"]) == (80, False, True, True)
    assert found["decay"] == "runs without weight decay"
    assert not {"kind", "published", "restricted_acc_grokked", "excluded_acc_grokked", "stable", "weight_hessian_trace_grokked"} & found.keys()  # fmt: skip
    never = columns(folder_of(tmp_path / "run", [row | {"train_acc": 0.5} for row in rows]), TRANSFORMER)
    assert (never["has_memorised"], never["not_memorised"], never["memorised_by"]) == (False, True, 80)
    assert "plateau" not in never and found["plateau"]
    unmemorised = columns(folder_of(tmp_path / "run", [row | {"train_acc": 0.5} for row in grokking()]), TRANSFORMER)
    assert (unmemorised["memorised_by"], unmemorised["plateau"]) == (80, False)  # at most: it may memorise later


def test_stability_begins_at_99_of_100_and_at_20_evaluations(tmp_path):
    def stable(after, below):
        rows = grokking(after)
        for row in rows[-1 - below : -1]:
            row["test_acc"] = 0.98
        return columns(folder_of(tmp_path / "run", rows), TRANSFORMER).get("stable")

    assert [stable(100, 1), stable(100, 2)] == [True, False]
    assert [stable(20, 0), stable(20, 1), stable(19, 0)] == [True, False, None]


def test_stability_is_of_the_evaluations_after_the_first_touch():
    def held(*test):
        return held_from_first_touch([{"epoch": i, "test_acc": value} for i, value in enumerate(test)])

    assert held(0.5, 0.99, 1.0, 0.5, 0.99) == [True, False, True]
    assert held(0.5, 0.98) == held(0.5, 0.99) == []


def test_a_run_counts_up_to_where_its_configuration_lets_it_end():
    rows = grokking(100)  # 0.99 at 40, a window of two evaluations, 10 epochs apart
    for stop, epochs, end in (
        (None, 900, 900),
        (25, 900, 70),
        (0, 900, 60),
        (200, 900, 240),
        (200, 90, 90),
        (0, 30, 30),
    ):
        assert last_epoch(rows, replace(TRANSFORMER, stop_after_grok=stop, epochs=epochs)) == end


def test_what_a_run_counts_as_goes_by_its_configuration(tmp_path):
    gates = {"routing_entropy": 0.6, "routing_max_use": 0.7, "routing_paths": 3}
    folder = folder_of(tmp_path / "run", [row | gates for row in grokking()])

    def kinds(**changes):
        found = columns(folder, replace(TRANSFORMER, **changes))
        return tuple(found.get(name) for name in ("kind", "published", "routing"))

    assert kinds() == (DENSE, ADAMW, "dense runs")
    assert kinds(recipe="grokfast") == (DENSE, None, "dense runs")
    assert kinds(model_type="baseline") == (DENSE, ADAMW, None)
    assert kinds(weight_decay=0.0) == (None, None, "dense runs")
    routed = {"model_type": "routed_transformer", "lambda_routing": 0.01}
    assert kinds(**routed) == (None, None, "routed runs")
    assert kinds(**routed | {"lambda_routing": 0.0}) == kinds(**routed, routing_regularizer=None) == (None, None, None)
    assert kinds(model_type="routed") == (None, None, None)
    entropies = [
        columns(folder, replace(TRANSFORMER, n_heads=4, routing_heads=8, **changes))["gate_entropy_share"]
        for changes in (routed, {"model_type": "routed"})
    ]
    assert entropies == pytest.approx([0.6 / math.log(8), 0.6 / math.log(4)])
    assert columns(folder, TRANSFORMER)["gate_max_use"] == 0.7
    for epoch in (40, 80):  # the larger of the two evaluations; others do not count
        rows = [row | gates | {"routing_max_use": 0.9 if row["epoch"] in (epoch, 20) else 0.7} for row in grokking()]
        assert columns(folder_of(tmp_path / "larger", rows), TRANSFORMER)["gate_max_use"] == 0.9
        rows = [row | gates | {"routing_paths": 1 if row["epoch"] in (epoch, 20) else 3} for row in grokking()]
        assert columns(folder_of(tmp_path / "fewer", rows), TRANSFORMER)["gate_paths"] == 1
    assert "gate_entropy_share" not in columns(folder, replace(TRANSFORMER, model_type="routed", n_heads=1))


def test_runs_are_matched_that_differ_in_one_thing_and_in_what_is_measured(tmp_path):
    folder = folder_of(tmp_path / "run", grokking())

    def matched(**changes):
        mine, other = columns(folder, TRANSFORMER), columns(folder, replace(TRANSFORMER, **changes))
        return tuple(mine[name] == other[name] for name in ("matched_but_for_decay", "matched_but_for_routing"))

    assert matched(epochs=9, checkpoint_every=3, metric_samples=8, stop_after_grok=5) == (True, True)
    assert matched(weight_decay=0.5) == (True, False)
    assert matched(model_type="baseline") == (False, True)
    assert matched(routing_heads=2, lambda_routing=0.5, decay_gates=True) == (True, True)
    for change in ({"seed": 1}, {"lr": 0.5}, {"train_frac": 0.5}, {"event_window": 3}):
        assert matched(**change) == (False, False)


def test_gates_are_selective_when_those_of_every_run_are():
    def unmet(*gates):
        rows = [
            {"routing": "routed runs", "gate_entropy_share": entropy, "gate_max_use": use, "gate_paths": (*paths, 2)[0]}
            for entropy, use, *paths in gates
        ]
        dense = {"routing": "dense runs", "gate_entropy_share": 1.0, "gate_max_use": 1.0, "gate_paths": 1}
        return SELECTIVE.unmet(pd.DataFrame([*rows, dense]))

    assert unmet((0.4, 0.8), (0.1, 0.3)) == ""
    assert "the largest are 0.60 and 0.80" in unmet((0.6, 0.3), (0.1, 0.8))
    assert "the largest are 0.20 and 0.95" in unmet((0.2, 0.3), (0.1, 0.95))
    assert unmet((0.5, 0.3)) and unmet((0.2, 0.9))
    assert "those of 1 of 2 were not measured" in unmet((0.4, 0.8), (None, 0.3))
    assert "the fewest paths 1, so that nothing is routed" in unmet((0.4, 0.8, 4), (0.1, 0.3, 1))


def test_each_claim_reads_its_own_column():
    """What a claim says it measures, with the column's value for each."""
    at_grokking = dict(zip(MEASURED_AT_EVENTS, (2.0, 3.0, 5.0, 7.0, 11.0), strict=False))
    values = {
        **{f"{name}_memorised": 1.0 for name in at_grokking}, **{f"{name}_grokked": x for name, x in at_grokking.items()},
        "memorises_first": True, "time": 26.0, "memorised_by": 2.0, "eval_every": 1, "not_memorised": False,
    }  # fmt: skip
    runs = [values | {"run": f"r{s}", "seed": s, "kind": DENSE, "published": ADAMW, "censored": False, "grokked": s > 0, "stable": s > 1, "training": f"t{s}", "plateau": s > 2, "keys_removed": s != 1, "keys_kept": s == 1} for s in range(4)]  # fmt: skip
    table = pd.DataFrame(runs)
    claims = {claim.id: claim for claim in CLAIMS}
    expected = {
        "curvature": 2, "curvature_scale_free": 3, "curvature_per_loss": 5, "restricted_loss": 7, "excluded_loss": 11,
        "delay": 13, "plateau": 0.25, "keys_removed": 0.75, "keys_kept": 0.25, "generalises": 0.75, "stability": 0.5,
    }  # fmt: skip
    found = {name: claims[name].measure.compute(table)[0].estimate for name in expected}
    assert found == pytest.approx(expected)
    falls = {name for name in expected if claims[name].below is not None}
    assert falls == {
        "curvature",
        "curvature_scale_free",
        "curvature_per_loss",
        "restricted_loss",
    }


# ---------------------------------------------------------------------------------------------------------- the events
def test_levels_are_reached_when_they_are_equalled():
    rows = [evaluation(10 * i, train, test) for i, (train, test) in enumerate([(0.5, 0.1), (0.99, 0.94), (0.99, 0.95), (1.0, 0.99), (1.0, 0.99)])]  # fmt: skip
    events = find_events(rows, p=20, window=1)  # chance is 0.05: the onset is at 0.1
    assert (events.memorised, events.onset, events.grokked_95, events.grokked_99) == (10, 0, 20, 30)
    assert (events.crossed_99, events.sustained_99, events.held_99, events.evaluations_after) == (30, 30, 1, 1)
    assert find_events(rows, p=20, window=2).sustained_99 == 30
    assert find_events(rows, p=20, window=3).sustained_99 is None
    assert not may_begin([], 0.98, 0.98, 1)
    assert may_begin([], 0.99, 0.0, 1) and may_begin([], 0.0, 0.99, 1)
    assert not may_begin(rows, 1.0, 1.0, 9)  # no rise: both were there at the last evaluation


# ------------------------------------------------------------------------------------------------------ a row's metrics
@pytest.fixture
def trained(small):
    """A routed network with weights that give each metric a value of its own, its probe and its state."""
    config = small(
        model_type="routed_transformer", n_layers=2, routing_heads=4, train_frac=0.4, warmup_epochs=20,
        lr_after_99=1e-4, weight_decay_rule="all",
    )  # fmt: skip
    model, stream = create_model(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=stream))
    data = create_dataset(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    loss = data_loss(config)
    for _ in range(2):
        loss(model.forward_pairs(data.train.a_N, data.train.b_N).logits_NP, data.train.y_N).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer_tensors(model, [optimizer]), Probe.draw(data, config, "cpu"), config


def test_every_metric_of_a_row_is_of_its_own_pairs_loss_and_stream(trained):
    model, state, probe, config = trained
    train, test, loss = probe.data.train, probe.data.test, data_loss(config)
    row = measure(model, state, probe, config, 7, 70, last=True).row()
    assert (row["step"], row["epoch"]) == (70, 7)
    with torch.no_grad():
        outputs = {split: model.forward_pairs(of.a_N, of.b_N) for split, of in (("train", train), ("test", test))}
    for split, pairs in (("train", train), ("test", test)):
        logits = outputs[split].logits_NP
        assert row[f"{split}_loss"] == pytest.approx(float(loss(logits, pairs.y_N)), rel=1e-4)
        assert row[f"{split}_acc"] == pytest.approx(float((logits.argmax(1) == pairs.y_N).double().mean()))
    lengths = outputs["test"].representation_ND.norm(dim=1)
    assert row["representation_norm"] == pytest.approx(float(lengths.mean()), rel=1e-4)

    def inputs(pairs):
        return set(zip(pairs.a_N.tolist(), pairs.b_N.tolist(), strict=True))

    assert len(probe.sensitivity) == len(probe.fisher) == config.metric_samples
    assert inputs(probe.sensitivity) <= inputs(test) and inputs(probe.fisher) <= inputs(train)
    x = model.plain_inputs(probe.sensitivity.a_N, probe.sensitivity.b_N)
    hessian = compute_hessian_trace(model, x, config.curvature_probes, generator(config.seed, "hessian", 7))
    weights = compute_weight_hessian_trace(
        model, train, loss, config.curvature_probes, generator(config.seed, "weight hessian", 7)
    )
    fisher = compute_fisher_trace(model, probe.fisher, loss)
    squares = sum(float(q.detach().double().square().sum()) for q in model.parameters())
    decayed = decayed_parameters(model, "all")
    expected = {
        "jacobian_norm": compute_jacobian_norm(model, x), "hessian_trace": hessian.value,
        "hessian_trace_se": hessian.standard_error, "gradient_norm": compute_gradient_norm(model, train, loss),
        "weight_hessian_trace": weights.value, "weight_hessian_trace_se": weights.standard_error,
        "weight_hessian_per_loss": weights.value / row["train_loss"],
        "weight_hessian_scale_free": weights.value * squares,
        "fisher_trace": fisher.value, "fisher_trace_se": fisher.standard_error, "weight_norm": squares**0.5,
        "decayed_weight_norm": sum(float(q.detach().double().square().sum()) for n, q in model.named_parameters() if n in decayed) ** 0.5,
    }  # fmt: skip
    assert len({round(value, 9) for value in expected.values()}) == len(expected)
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_spectra_routing_and_progress_of_a_row(trained):
    model, state, probe, config = trained
    row = measure(model, state, probe, config, 7, 70, last=True).row()
    with torch.no_grad():
        output = model.forward_pairs(probe.all.a_N, probe.all.b_N)
        plain = model.run_from_embeddings(model.get_embeddings(model.plain_inputs(probe.all.a_N, probe.all.b_N)))
    torch.testing.assert_close(plain.routing, output.routing, rtol=1e-4, atol=1e-5)  # of gates that are not uniform
    grid_IJK = grid_logits(output.logits_NP, probe.all, config.p, config.operation)
    ginis = weight_ginis(model, config.operation)
    first, second = (w.double() for w in output.routing)
    entropies = [float(-(w * w.log()).sum(1).mean()) for w in (first, second)]
    uses = [float(w.mean(0).max()) for w in (first, second)]
    assert abs(uses[0] - uses[1]) > 0.01
    expected = {
        "spectral_smoothness": spectral_smoothness(grid_IJK), "aligned_power": character_power(grid_IJK).aligned,
        "gini_embedding": ginis.embedding, "gini_neuron_to_logit": ginis.neuron_to_logit,
        "gini_unembedding": ginis.unembedding, "logit_scale": logit_scale(output.logits_NP),
        "routing_entropy": sum(entropies) / 2, "routing_max_use": max(uses),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert row["routing_paths"] == len(set(zip(first.argmax(1).tolist(), second.argmax(1).tolist(), strict=True)))
    progress = measuring.measure_progress(model, output, probe, config)
    for name in ("restricted_loss", "excluded_loss", "restricted_acc", "excluded_acc", "key_share"):
        assert row[name] == pytest.approx(progress[name], rel=1e-4)
    layers = {name for name in row if name.startswith("layer_weight_norm_")}
    assert {"layer_weight_norm_token", "layer_weight_norm_blocks_1_query"} <= layers


def test_gates_are_measured_where_an_event_may_begin(trained, monkeypatch):
    model, state, probe, config = trained
    config = replace(config, log_every=1000)
    for event in (True, False):
        monkeypatch.setattr(measuring, "may_begin", lambda *given, event=event: event)
        row = measure(model, state, probe, config, 7, 70, last=False).row()
        assert ("routing_entropy" in row, "routing_max_use" in row, "logit_scale" in row) == (event, event, False)


def test_collapse_is_of_training_pairs_in_float32(trained):
    model, _, probe, config = trained
    logits = torch.zeros(len(probe.all), config.p)
    logits[probe.train_mask_N.nonzero()[:5, 0], 0] = 30.0  # exp(-30) is lost beside 1 in float32 and not in float64
    logits[(~probe.train_mask_N).nonzero()[:20, 0], 0] = 30.0
    with torch.no_grad():
        output = model.forward_pairs(probe.all.a_N, probe.all.b_N)._replace(logits_NP=logits)
    found = measuring.measure_function(model, output, probe, config)
    training = int(probe.train_mask_N.sum())
    assert found["softmax_collapse"] == pytest.approx(5 / training)
    y_N = probe.all.y_N[probe.train_mask_N]
    assert found["train_loss_float32"] == pytest.approx(float(data_loss(config)(logits[probe.train_mask_N], y_N)), rel=1e-5)  # fmt: skip


def test_probes_are_drawn_anew_at_each_epoch(trained):
    model, state, probe, config = trained
    rows = [measure(model, state, probe, config, epoch, 70, last=True).row() for epoch in (5, 5, 6)]
    for name in ("hessian_trace", "weight_hessian_trace"):
        assert rows[0][name] == rows[1][name] != rows[2][name]
    assert rows[0]["fisher_trace"] == rows[2]["fisher_trace"]


def test_adams_rate_is_that_of_the_update_before(trained, monkeypatch):
    """A warm-up over 20 epochs: the row of epoch 5 names the rate to come, and Adam's metrics are of the one that led to it."""
    model, state, probe, config = trained
    first, now = (measure(model, state, probe, config, epoch, 70, last=True).row() for epoch in (0, 5))
    assert (first["lr"], now["lr"]) == (config.lr / 20, pytest.approx(config.lr * 6 / 20))
    by_rate = {lr: measuring.measure_adam(model, state, config, lr) for lr in (config.lr / 20, config.lr * 5 / 20)}
    for row, lr in ((first, config.lr / 20), (now, config.lr * 5 / 20)):
        for name in ("effective_lr_mean", "effective_lr_max", "adam_ratio_mean", "update_decay_ratio"):
            assert row[name] == pytest.approx(by_rate[lr][name])
    # The evaluation that touches 0.99 changes the rate of the next update, not of the one that led to it.
    basics = {"train_loss": 0.1, "test_loss": 0.1, "train_acc": 1.0, "test_acc": 0.99}
    monkeypatch.setattr(measuring, "measure_basics", lambda *_: basics)
    touches = measure(model, state, probe, config, 5, 70, last=True).row()
    assert touches["lr"] == pytest.approx(config.lr_after_99 * 6 / 20)
    assert touches["effective_lr_mean"] == now["effective_lr_mean"]
    after = measure(model, state, probe, config, 5, 70, True, [basics | {"epoch": 4, "step": 1}]).row()
    assert after["effective_lr_mean"] == pytest.approx(now["effective_lr_mean"] * config.lr_after_99 / config.lr)


def test_what_is_measured_when(trained, monkeypatch):
    model, state, probe, config = trained
    config = replace(config, eval_every=5, log_every=20, weight_curvature_interval=15, sensitivity_every=10)

    def parts(epoch, last=False, train_acc=0.5, test_acc=0.1, **changes):
        basics = {"train_loss": 0.1, "test_loss": 0.1, "train_acc": train_acc, "test_acc": test_acc}
        monkeypatch.setattr(measuring, "measure_basics", lambda *_: basics)
        row = measure(model, state, probe, replace(config, **changes), epoch, 1, last).row()
        names = ("spectral_smoothness", "lr", "adam_ratio_mean", "weight_norm", "jacobian_norm", "weight_hessian_trace")
        return "".join(name[0] for name in names if name in row)

    assert [parts(epoch) for epoch in (5, 10, 15, 20)] == ["", "j", "w", "slawj"]
    assert parts(5, last=True) == "slawjw"
    assert parts(5, train_acc=0.99) == parts(5, test_acc=0.99) == "ww"
    assert parts(5, sensitivity_every=None) == "j"
    assert parts(5, last=True, compute_weight_curvature=False) == "slawj"
    assert parts(20, compute_optimizer_metrics=False) == "slwj"


def test_results_are_of_the_last_row_but_for_the_best(trained):
    model, _, _, config = trained
    rows = [evaluation(0, 0.1, 0.2, step=0, softmax_collapse=0.5), evaluation(5, 0.2, 0.9, step=5), evaluation(10, 0.3, 0.4, step=10, softmax_collapse=0.0)]  # fmt: skip
    rows[-1] |= {"train_loss": 2.0, "test_loss": 3.0}
    found = results(rows, config, model)
    expected = {
        "epoch": 10, "step": 10, "train_loss": 2.0, "test_loss": 3.0, "train_acc": 0.3, "test_acc": 0.4, "best_test_acc": 0.9,
        "evaluations_with_softmax_collapse": 1, "evaluations_looked_at_for_it": 2, "largest_softmax_collapse": 0.5,
        "slingshots": 1, "parameters": sum(q.numel() for q in model.parameters()),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


# --------------------------------------------------------------------------------------------------------- the training
def test_a_run_stops_so_long_after_it_grokked_unless_it_is_extended(small, tmp_path, train, monkeypatch):
    def at_five(rows, config):
        return 5 if rows[-1:] and rows[-1]["epoch"] >= 5 else None

    monkeypatch.setattr(loop, "grokked_epoch", at_five)
    monkeypatch.setattr("least_action.events.grokked_epoch", at_five)
    config = small(stop_after_grok=10, event_window=2, compute_weight_curvature=False)
    train(config, tmp_path / "run")
    assert [row["epoch"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [0, 5, 10, 15]
    train(config, tmp_path / "run", resume=True, extra_epochs=5)
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["epoch"] == 35


def test_processes_share_each_batch_without_a_pair_in_common(small):
    config = small(batch_size=9)
    pairs = create_dataset(config).train
    alone, first, second = (list(batches(pairs, config, 3, rank, world)) for rank, world in ((0, 1), (0, 2), (1, 2)))

    def inputs(part):
        return list(zip(part.a_N.tolist(), part.b_N.tolist(), strict=True))

    for (whole, share), (one, share_one), (two, share_two) in zip(alone, first, second, strict=True):
        assert sorted(inputs(one) + inputs(two)) == sorted(inputs(whole))
        # The mean of the two processes' weighted means is the whole batch's mean.
        assert (share, share_one / 2, share_two / 2) == (1, len(one) / len(whole), len(two) / len(whole))


def test_the_parts_of_the_loss_have_weights_and_steps_of_their_own(small):
    config = small(lambda_spectral=2.0, spectral_interval=3, lambda_jacobian=0.1)
    model, pairs = create_model(config), create_dataset(config).pairs
    few, grid = pairs[torch.arange(5)], (pairs.a_N, pairs.b_N)
    table_IJK = grid_logits(model.forward_pairs(*grid).logits_NP, pairs, config.p, config.operation)
    smoothness = 2.0 * spectral_smoothness_loss(table_IJK)
    for step, rank in ((3, 0), (3, 1), (4, 0)):
        stream = generator(config.seed, "jacobian", step, rank)
        jacobian = 0.1 * jacobian_regularizer(model, model.plain_inputs(few.a_N, few.b_N), stream)
        found = LeastActionLoss(config).extra(model, few.a_N, few.b_N, grid, step, rank)
        torch.testing.assert_close(found, jacobian + smoothness if step == 3 else jacobian)
    logits, y_N = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([1])
    stable = data_loss(small(recipe="orthograd_stablemax"))(logits, y_N)
    assert float(stable) == pytest.approx(math.log(3 + 1 + 0.5))  # s(x) is x + 1, and 1 / (1 - x) below 0
    for recipe in ("none", "orthograd"):
        found = data_loss(small(recipe=recipe))(logits, y_N)
        assert float(found) == pytest.approx(math.log(math.exp(2) + 1 + math.exp(-1)))


def test_a_split_is_of_its_task_and_gates_decay_under_one_rule(small, trained):
    splits = [create_dataset(small(operation=name)).train_index.tolist() for name in ("add", "subtract", "add")]
    assert splits[0] == splits[2] != splits[1]
    model = trained[0]
    gates = {name for name, _ in model.named_parameters() if ".gate." in name}
    assert gates
    assert decayed_parameters(model, "all", True) - decayed_parameters(model, "all") == gates
    assert decayed_parameters(model, "matrices", True) == decayed_parameters(model, "matrices")


# ----------------------------------------------------------------------------------------------------------- the tables
EVENTS = Events(10, 20, 30, 50, 40, 900, 45, 60, 0.875, 8, 0.25, 0.0625, 0.09375)


def test_each_head_of_the_table_of_events_has_its_event():
    none = Events(None, None, None, None, None, 800)
    table = reporting.event_table(
        [
            {"run": "a", "test_acc": 0.75, **EVENTS.as_dict(), "held_from_touch": 0.9},
            {"run": "b", "test_acc": 0.5, **none.as_dict()},
        ]
    )
    first, second = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert first == {
        "run": "a", "memorised": 10, "onset": 20, "0.95 held": 30, "0.99 first": 45, "0.99 held": 50, "0.99 to the end": 60,
        "delay": 40, "test accuracy at memorisation": 0.25, "on new pairs": 0.0625, "highest of the window": 0.09375, "stability": 0.9,
        "last test accuracy": 0.75,
    }  # fmt: skip
    assert {value for name, value in second.items() if name not in ("run", "last test accuracy")} == {"> 800", "none"}
    assert (second["0.99 held"], second["delay"], second["stability"], second["last test accuracy"]) == ("> 800", "none", "none", 0.5)  # fmt: skip


def test_the_sentence_on_one_run():
    def said(has_ended=True, **changes):
        return reporting.answer({**EVENTS.as_dict(), **changes}, has_ended)

    held = "0.99 test accuracy held from epoch 50 on, and in 88% of the evaluations after that"
    then = (
        "test accuracy was 0.25 when it memorised, 40 epochs before, and 0.06 on pairs whose mirror image was new too."
    )
    assert said() == f"This run grokked: {held}; {then}"
    without = said(new_at_memorised=0.05, highest_new_accuracy=0.5)
    assert without.startswith(f"This run generalised without a plateau: {held}") and "0.05 on pairs" in without
    assert said(highest_new_accuracy=0.1).startswith("This run generalised without a plateau")  # it is below 0.1
    assert said(memorised=None) == f"This run generalised without having memorised first: {held}."
    never = {"grokked_99": None, "held_99": None}
    assert said(**never) == "This run memorised and had not generalised when it ended at epoch 900: censored there."
    assert "did not memorise and had not" in said(**never, memorised=None)
    assert said(False, **never) == "This run has not ended; up to epoch 900 it memorised and has not generalised."


def sweep_table(folder):
    """Two arms: in "x" two of three runs reach 0.99, and one of them stays there; in "y" neither does."""
    of = ("run", "arm", "time", "last_epoch", "grokked", "stable", "crossed_99", "test_at_memorised", "new_at_memorised", "gate_entropy_share", "gate_max_use")  # fmt: skip
    nan = math.nan
    runs = [
        ("x1", "x", 100, 700, True, True, 90, 0.2, 0.04, 0.30, 0.50),
        ("x2", "x", 200, 800, True, False, 150, 0.4, 0.08, 0.40, 0.70),
        ("x3", "x", 900, 900, False, True, nan, 0.6, 0.15, 0.50, 0.90),
        ("y1", "y", 500, 500, False, None, 450, nan, nan, 0.80, 0.20),
        ("y2", "y", 600, 600, False, None, nan, nan, nan, 0.90, 0.30),
    ]
    made = pd.DataFrame([dict(zip(of, run, strict=True)) for run in runs])
    made["censored"] = ~made["grokked"]
    made["highest_new_accuracy"] = made["new_at_memorised"] + 0.01
    made["folder"] = [str(folder_of(folder / name, [evaluation(0, 0.5, 0.25), evaluation(10, 1.0, 0.75)])) for name in made["run"]]  # fmt: skip
    constants = {
        "train_frac": 0.3,
        "weight_decay": 1.0,
        "operation": "add",
        "epochs": 900,
        "test_acc": 0.5,
        "held_99": 0.9,
        "delay": nan,
    }
    events = dict.fromkeys(("memorised", "onset", "grokked_95", "grokked_99", "sustained_99"), nan)
    return made.assign(**constants, **events)


def sweep_record(folder):
    return SimpleNamespace(
        folder=folder,
        table=sweep_table(folder),
        missing={"z": "not begun"},
        first_config=TRANSFORMER,
        verb="sweep",
        config=SweepConfig(base={"p": 7, "model_type": "transformer"}),
        claims=[],
    )


def test_every_cell_of_the_table_of_arms(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(reporting, "plot_survival", lambda *given: drawn.update(survival=given[:3]) or given[-1])
    monkeypatch.setattr(reporting, "plot_arm_curves", lambda *given: drawn.update(curves=given[0]) or given[-1])
    monkeypatch.setattr(reporting, "plot_arms", lambda *given: drawn.update(arms=given[:2]) or given[-1])
    made = reporting.report(sweep_record(tmp_path))
    (events,), table = made.tables, made.pictures[1].table
    x, y = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert x == {
        "arm": "x", "runs": 3, "reached it": 2,
        "held: median [95 % interval]": reporting.median_text(kaplan_meier([100, 200, 900], [True, True, False])),
        "first touch: median": "150", "test accuracy at memorisation": "0.40", "on new pairs": "0.09", "highest of the window": "0.10", "stable": "2 of 3",
        "gate entropy over log heads": "0.40", "largest use of a head": "0.70",
    }  # fmt: skip
    assert x["held: median [95 % interval]"].startswith("200 [")
    assert y == {
        "arm": "y", "runs": 2, "reached it": 0, "held: median [95 % interval]": "not reached",
        "first touch: median": "450", "test accuracy at memorisation": NOT_APPLICABLE, "on new pairs": NOT_APPLICABLE,
        "highest of the window": NOT_APPLICABLE, "stable": NOT_APPLICABLE, "gate entropy over log heads": "0.85", "largest use of a head": "0.25",
    }  # fmt: skip
    assert len(events.rows) == 5 and not events.folded
    assert made.metrics == {
        "runs": 5, "failed": 1,
        "arms": {"x": {"n": 3, "grokked": 2, "censored": 1, "median_epochs_to_grok": 200.0}, "y": {"n": 2, "grokked": 0, "censored": 2}},
    }  # fmt: skip
    assert made.answer == "2 of 5 runs came to generalise."
    assert made.notes[0] == (
        "2 of 5 runs reached 0.99 test accuracy: 2 after a plateau (they grokked), 0 without one. 1 more had it in single "
        "evaluations and did not hold it for a window. Of the 3 that went on long enough after their first evaluation at 0.99 "
        "to tell, 2 stayed there."
    )
    curves, censored, ends = drawn["survival"]
    assert (curves["x"].times, curves["x"].n, curves["x"].events) == ([100, 200], 3, 2)
    assert (censored, ends) == ({"x": [900], "y": [500, 600]}, {"x": 900, "y": 600})
    assert {arm: len(runs) for arm, runs in drawn["curves"].items()} == {"x": 3, "y": 2}
    names, panels = drawn["arms"]
    (medians,), (shares,) = (list(series.values()) for series in panels.values())
    assert names == ["x", "y"] and medians[1] is None
    assert (medians[0].estimate, medians[0].high) == (200, 900)  # open, so that it ends where the runs do
    assert [(share.estimate, share.n) for share in shares] == [(2 / 3, 3), (0, 2)]


def test_a_sweep_says_who_had_a_plateau_and_who_stayed(tmp_path):
    table = sweep_table(tmp_path)
    table.loc[1, "highest_new_accuracy"] = 0.5
    table.loc[1, "stable"] = True
    table.loc[0, "stable"] = None
    said = reporting.counts_of(table)
    assert "1 after a plateau (they grokked), 1 without one" in said
    table.loc[2, "stable"] = False
    said = reporting.counts_of(table)
    assert "Of the 2 that went on long enough after their first evaluation at 0.99 to tell, 1 stayed there." in said
    assert reporting.counts_of(table[~table["grokked"]]).startswith(
        "None of 3 runs reached 0.99 test accuracy. 1 more had"
    )


def test_a_median_stands_before_its_lower_and_its_upper_end():
    curve = Survival([10, 20, 30, 40], [0.8, 0.4, 0.3, 0.2], [0.5, 0.3, 0.2, 0.1], [0.9, 0.8, 0.5, 0.4], 9, 8)
    assert reporting.median_text(curve) == "20 [10, 30]"
    assert curve.quantile(0.75) == 40
    assert reporting.median_text(replace(curve, high=[0.9] * 4)) == "20 [10, not reached]"


def test_notes_name_the_rule_of_weight_decay_and_the_epochs_of_an_event():
    def first_two(**changes):
        return " ".join(reporting.notes(replace(TRANSFORMER, **changes))[:2])

    config = {"eval_every": 20, "log_every": 100, "weight_decay": 0.5}
    assert first_two(**config).startswith("Weight decay 0.5 applies to matrices only")
    assert "the first of 2 consecutive evaluations (20 epochs apart)" in first_two(**config)
    assert "applies to every parameter but routing gates." in first_two(weight_decay_rule="all")
    assert "applies to every parameter." in first_two(weight_decay_rule="all", decay_gates=True)


def test_the_report_of_one_run_has_each_metric_with_its_epoch(tmp_path):
    rows = grokking(test_acc=0.9921875)
    rows[2]["jacobian_norm"] = 5.0
    record = SimpleNamespace(
        folder=tmp_path, rows=rows, config=TRANSFORMER, verb="train", arrays={}, manifest={"state": "done"}
    )
    made = reporting.report(record)
    events, values = made.tables
    assert events.rows[0][-1] == 0.9921875
    shown = {name: (value, epoch) for name, value, epoch in values.rows}
    assert shown["jacobian_norm"] == (5.0, 20)
    assert shown["test_acc"] == (0.9921875, 80)
    assert shown["weight_hessian_per_loss"] == (0.25, 80)
    assert not {"epoch", "step"} & shown.keys()
    assert made.answer.startswith("This run grokked")
    record.manifest["state"], record.rows = "running", rows[:4]
    assert reporting.report(record).answer.startswith("This run has not ended; up to epoch 30 it memorised")


# ---------------------------------------------------------------------------------------------------------- the figures
@pytest.fixture
def axes(monkeypatch):
    """The axes of every figure, in order."""
    found = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: found.append(figure.axes) or path)
    yield found
    plt.close("all")


def drawn(axis):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}


def test_a_survival_curve_its_band_and_its_ticks(axes, tmp_path):
    curve = Survival([10, 30], [0.75, 0.25], [0.5, 0.125], [0.9, 0.625], 4, 3)
    none = Survival([], [], [], [], 2, 0)
    figures.plot_survival({"a": curve, "b": none}, {"a": [20, 40], "b": [25]}, {"a": 50.0, "b": 25.0}, tmp_path / "x")
    axis = axes[-1][0]
    step, ticks, flat, tick = axis.lines
    assert (list(step.get_xdata()), list(step.get_ydata())) == ([0, 10, 30, 50], [1, 0.75, 0.25, 0.25])
    assert step.get_drawstyle() == "steps-post"
    assert step.get_label() == "a (n = 4, 3 reached it)"
    assert (list(ticks.get_xdata()), list(ticks.get_ydata())) == ([20, 40], [0.75, 0.25])
    assert (list(flat.get_xdata()), list(flat.get_ydata())) == ([0, 25], [1, 1])
    assert (list(tick.get_xdata()), list(tick.get_ydata())) == ([25], [1])
    (band,) = axis.collections
    heights = {}
    for x, y in band.get_paths()[0].vertices:
        heights.setdefault(float(x), set()).add(round(float(y), 6))
    assert heights[0] == {1}
    assert heights[10] >= {0.5, 0.9} and heights[30] >= {0.125, 0.625}
    assert heights[50] == {0.125, 0.625}


def test_training_curves_are_of_their_columns_with_the_events(axes, tmp_path):
    rows = [row | {"train_loss": 1 / (1 + i), "test_loss": 2.0 + i} for i, row in enumerate(grokking())]
    rows[3]["test_acc"] = 0.96
    figures.plot_training_curves(MetricsHistory(rows), tmp_path / "x", TRANSFORMER)
    for axis, kind in zip(axes[-1], ("loss", "acc"), strict=True):
        for split, label in (("train", "training pairs"), ("test", "held-out pairs")):
            assert drawn(axis)[label] == ([row["epoch"] for row in rows], [row[f"{split}_{kind}"] for row in rows])
        lines = {line.get_linestyle(): line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 2}
        assert lines == {"--": 20, "-": 40}
    assert [axis.get_ylabel() for axis in axes[-1]] == ["cross-entropy", "accuracy"]
    assert [text.get_text() for text in axes[-1][1].texts] == ["memorised 20", "0.99 held 40"]
    figures.plot_training_curves(
        MetricsHistory(rows), tmp_path / "x", replace(TRANSFORMER, recipe="orthograd_stablemax")
    )
    assert axes[-1][0].get_ylabel() == "StableMax cross-entropy"


def test_curvature_and_progress_are_drawn_from_their_columns(axes, tmp_path):
    names = ("weight_hessian_trace", "fisher_trace", "jacobian_norm", "excluded_loss", "restricted_loss", "test_loss")
    rows = [{"epoch": 10 * k} | {name: 1.0 + i + 10 * k for i, name in enumerate(names)} for k in (0, 1)]
    rows = [row | {"weight_hessian_trace_se": 0.25 + row["epoch"]} for row in rows] + [{"epoch": 99}]
    figures.plot_curvature(MetricsHistory(rows), tmp_path / "x", TRANSFORMER)
    labels = ("weight Hessian trace", "Fisher trace", "input Jacobian, squared norm", "excluded (training pairs)", "restricted (all pairs)", "test")  # fmt: skip
    found = {label: line for axis in axes[-1] for label, line in drawn(axis).items()}
    for i, label in enumerate(labels):
        assert found[label] == ([0, 10], [1.0 + i, 11.0 + i]), label
    (bars,) = axes[-1][0].collections
    assert [segment.tolist() for segment in bars.get_segments()] == [[[0, 0.75], [0, 1.25]], [[10, 0.75], [10, 21.25]]]


def test_accuracies_of_every_run_of_each_arm(axes, tmp_path):
    def run(k):
        return [evaluation(0, 0.1 * k, 0.01 * k), evaluation(10, 0.2 * k, 0.02 * k)]

    figures.plot_arm_curves({"a": [run(1), run(2)], "b": [run(3)]}, tmp_path / "x")
    first, second = axes[-1]
    assert (first.get_title(), second.get_title()) == ("a", "b")
    training, held_out = figures.COLOURS[:2]
    found = [(line.get_color(), list(line.get_ydata())) for axis in (first, second) for line in axis.lines if len(line.get_xdata())]  # fmt: skip
    expected = [(colour, [share * k, 2 * share * k]) for k in (1, 2, 3) for colour, share in ((training, 0.1), (held_out, 0.01))]  # fmt: skip
    assert found == expected
    assert {line.get_label(): line.get_color() for line in first.lines[-2:]} == {"training pairs": training, "held-out pairs": held_out}  # fmt: skip


def test_spectra_and_heads_are_drawn_from_their_arrays(axes, tmp_path):
    logits = np.arange(25.0).reshape(5, 5) - 12
    arrays = {
        "class_logits_IJ": logits,
        "embedding_power_F": np.array([0.75, 0.25]),
        "logit_power_F": np.array([0.4, 0.6]),
    }
    figures.plot_spectral_analysis(arrays, tmp_path / "x")
    embedding, logit, image = axes[-1][:3]
    assert [bar.get_height() for bar in embedding.patches] == [0.75, 0.25]
    assert [bar.get_height() for bar in logit.patches] == [0.4, 0.6]
    assert [bar.get_x() + bar.get_width() / 2 for bar in logit.patches] == pytest.approx([1, 2])
    np.testing.assert_array_equal(image.images[0].get_array(), logits.T)  # a across, b up
    assert (image.get_xlabel(), image.get_ylabel()) == ("a (group order)", "b (group order)")
    heads = [np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])]
    arrays = {f"dominant_head_{k}_PP": grid for k, grid in enumerate(heads)}
    arrays |= {"head_use_0_R": np.array([0.3, 0.7]), "head_use_1_R": np.array([0.9, 0.1])}
    figures.plot_routing_heatmap(arrays, tmp_path / "x")
    for axis, grid, title in zip(axes[-1], heads, ("layer 1; mean weights 0.30, 0.70", "layer 2; mean weights 0.90, 0.10"), strict=False):  # fmt: skip
        np.testing.assert_array_equal(axis.images[0].get_array(), grid.T)
        assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == (title, "a", "b")


def test_the_atlas_has_fractions_across_and_decay_up(axes, tmp_path):
    cells = {(0.2, 0.0): (None, False), (0.2, 1.0): (None, True), (0.4, 0.0): (300, True), (0.4, 1.0): (100, True), (0.6, 1.0): (50, True)}  # fmt: skip
    table = pd.DataFrame(
        {"operation": "add", "p": 7, "epochs": 500, "train_frac": f, "weight_decay": d, "time": t or 500, "grokked": t is not None, "has_memorised": m, "has_plateau": t == 300}
        for (f, d), (t, m) in cells.items()
    )  # fmt: skip
    figures.plot_atlas(table, tmp_path / "x")
    axis = axes[-1][0]
    texts = {tuple(text.xy): text.get_text() for text in axis.texts}
    assert texts == {(0, 0): "-", (0, 1): "-", (1, 0): "300", (1, 1): "100", (2, 1): "50"}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.2", "0.4", "0.6"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "1"]
    greys = {patch.get_xy(): patch.get_facecolor() for patch in axis.patches}
    assert greys[(-0.5, -0.5)] == colors.to_rgba(figures.REGIONS["never memorised"])
    assert greys[(-0.5, 0.5)] == colors.to_rgba(figures.REGIONS["memorised only"])
    frames = [patch for patch in axis.patches if not patch.get_fill()]
    assert [frame.get_xy() for frame in frames] == [pytest.approx((0.58, -0.42))]  # of the one that groks


def test_a_series_is_a_columns_values_where_it_was_measured():
    history = MetricsHistory([{"epoch": 0, "a": 1.0, "b": 2.0}, {"epoch": 5, "b": 3.0}, {"epoch": 10, "a": 0.0}])
    assert history.series("a") == ([0, 10], [1.0, 0.0])
