"""Training: reproducible, resumable to the bit, untouched by metrics, the same on two processes."""

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from conftest import COMMAND
from safetensors.torch import load_file

from least_action.cli import Trainer
from least_action.data import batches, create_dataset
from least_action.history import MetricsHistory
from least_action.metrics.training import Probe, measure_basics
from least_action.model import Output, build_model, replay_probe
from studycore.checkpoints import load_latest, read_index, rebuild
from studycore.configuration import to_dict, to_yaml
from studycore.errors import UserError
from studycore.metrics_log import read_rows
from studycore.testing.runs import cut_off, output_of, same


def weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    checkpoints = folder / "checkpoints"
    return load_file(checkpoints / read_index(checkpoints)[which] / "model.safetensors")


def test_the_first_twenty_steps_are_the_recorded_ones(small, tmp_path, train):
    """A change that moves these numbers changes every result; do it on purpose, and say so in the change log."""
    config = small(
        epochs=20, eval_every=1, log_every=20, weight_curvature_interval=20, dtype="float64", p=11, hidden_dim=16
    )
    train(config, tmp_path / "run")
    losses = [row["train_loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    recorded = json.loads((Path(__file__).parent / "loss_series.json").read_text())
    assert losses == pytest.approx(recorded, rel=1e-9)


def test_metrics_leave_training_alone(small, tmp_path, train):
    often = small(eval_every=1, log_every=1, weight_curvature_interval=1, checkpoint_every=3)
    seldom = small(
        eval_every=30,
        log_every=30,
        compute_weight_curvature=False,
        weight_curvature_interval=30,
        compute_optimizer_metrics=False,
    )
    state = torch.random.get_rng_state()
    for name, config in (("often", often), ("seldom", seldom)):
        train(config, tmp_path / name)
    for name, value in weights(tmp_path / "often").items():
        assert torch.equal(value, weights(tmp_path / "seldom")[name])
    torch.random.set_rng_state(state)
    torch.rand(100)  # the global stream plays no part
    train(seldom, tmp_path / "again")
    same(tmp_path / "seldom", tmp_path / "again")


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "grokfast"},
        {"recipe": "muon", "batch_size": 10},
        {"recipe": "constrained_norm", "warmup_epochs": 25},
        {"recipe": "bounded_sphere", "grad_clip": 0.1, "lambda_jacobian": 0.01},
        {
            "model_type": "routed",
            "n_layers": 2,
            "routing_regularizer": "consistency",
            "lambda_spectral": 0.1,
            "spectral_interval": 2,
        },
        {"model_type": "baseline", "recipe": "orthograd_stablemax"},
    ],
    ids=str,
)
@pytest.mark.parametrize("extra", [0, 15])
def test_resuming_is_bitwise(small, tmp_path, changes, extra, train):
    """Stopped at epoch 12 of 30 by losing all that came after the checkpoint at 10, then continued."""
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    config = small(**changes)
    train(config, straight)
    if extra:
        train(config, straight, resume=True, extra_epochs=extra)
    import least_action.train as module

    calls = {"n": 0}
    original = module.learning_rate

    def dies(epoch, *more):
        calls["n"] += 1
        if epoch == 12:
            raise KeyboardInterrupt
        return original(epoch, *more)

    module.learning_rate = dies
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, cut)
    finally:
        module.learning_rate = original
    assert calls["n"] >= 12
    train(config, cut, resume=True, extra_epochs=extra)
    same(straight, cut)
    assert not list((cut / "history").glob("*")) if (cut / "history").exists() else True


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_resumes_to_the_bit(small, tmp_path, sign, train):
    config = small(epochs=1500, eval_every=10, log_every=500, weight_curvature_interval=500, checkpoint_every=100)
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(to_dict(config)))
    flags = ["--config", str(file), "--device", "cpu", "--threads", "1"]
    cut_off(tmp_path / "cut", 31, sign, *COMMAND, "train", *flags, "--output-dir", tmp_path / "cut")
    output_of(*COMMAND, "resume", tmp_path / "cut")
    train(config, tmp_path / "straight")
    same(tmp_path / "straight", tmp_path / "cut")


def test_a_run_without_a_checkpoint_resumes_at_step_zero(small, tmp_path, train):
    config = small()
    train(config, tmp_path / "straight")
    train(config, tmp_path / "cut")
    import shutil

    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    train(config, tmp_path / "cut", resume=True)
    same(tmp_path / "straight", tmp_path / "cut")


def test_resume_refuses_another_configuration_data_and_architecture(small, tmp_path, train):
    train(small(), tmp_path / "run")
    with pytest.raises(UserError, match=r"lr: stored 0.01, given 0.5"):
        train(small(lr=0.5), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="holds a run already"):
        train(small(), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    of_other_data = manifest | {"data_fingerprints": {"training pairs": "0" * 64}}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(of_other_data))
    with pytest.raises(UserError, match="training pairs"):
        train(small(), tmp_path / "run", resume=True)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    # Another architecture's checkpoint put into the folder.
    train(small(hidden_dim=16), tmp_path / "wide")
    import shutil

    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "wide" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"another architecture: hidden_dim: stored 16, given 8"):
        train(small(), tmp_path / "run", resume=True)


def test_a_setting_that_no_tensor_shows_is_caught_by_the_probe(small, tmp_path, train):
    """A changed temperature loads strictly and is another function."""
    train(small(recipe="bounded_sphere"), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = checkpoints / read_index(checkpoints)["last"]
    stored = json.loads((newest / "config.json").read_text())
    (newest / "config.json").write_text(json.dumps(stored | {"sphere_temperature": 11.0}))
    from studycore.checkpoints import FILES
    from studycore.files import sha256

    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["sha256"] = {name: sha256(newest / name) for name in FILES}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="probe"):
        rebuild(load_latest(checkpoints), build_model, replay_probe)


def test_a_small_sphere_groks_and_stops_some_epochs_later(small, tmp_path, train):
    config = small(p=23, train_frac=0.8, hidden_dim=32, activation="relu", init_std=0.15, recipe="bounded_sphere", weight_decay_rule="all", seed=0, epochs=2000, log_every=1000, weight_curvature_interval=1000, stop_after_grok=25)  # fmt: skip
    train(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert results["grokked_99"] + 25 <= results["epoch"] < results["grokked_99"] + 30
    assert results["memorised"] <= results["grokked_99"]
    measured = {row["epoch"]: row for row in read_rows(tmp_path / "run" / "metrics.jsonl")}
    for event in ("memorised", "grokked_99"):  # between the intervals, at the event itself
        row = measured[results[event]]
        assert {"weight_hessian_trace", "restricted_loss", "excluded_loss", "weight_norm"} <= row.keys()
        free = row["weight_hessian_trace"] * row["weight_norm"] ** 2
        assert row["weight_hessian_scale_free"] == pytest.approx(free, rel=1e-5)
    assert results["evaluations_looked_at_for_it"] >= 2


def test_the_rate_falls_when_099_is_touched_and_stays_low_after_a_resume(small, tmp_path, train, monkeypatch):
    values = {"p": 23, "train_frac": 0.8, "hidden_dim": 32, "activation": "relu", "init_std": 0.15, "recipe": "bounded_sphere", "weight_decay_rule": "all", "seed": 0, "epochs": 2000, "log_every": 5, "weight_curvature_interval": 1000, "compute_weight_curvature": False, "sensitivity_every": 1000, "stop_after_grok": 40}  # fmt: skip
    train(small(**values), tmp_path / "plain")
    train(small(**values, lr_after_99=1e-4), tmp_path / "settled")
    plain, settled = ({row["epoch"]: row for row in read_rows(tmp_path / name / "metrics.jsonl")} for name in ("plain", "settled"))  # fmt: skip
    touched = next(epoch for epoch, row in plain.items() if row["test_acc"] >= 0.99)
    assert [plain[e]["test_loss"] for e in plain if e <= touched] == [settled[e]["test_loss"] for e in plain if e <= touched]  # fmt: skip
    assert {row["lr"] for epoch, row in settled.items() if epoch < touched} == {1e-2}
    assert {row["lr"] for epoch, row in settled.items() if epoch >= touched} == {1e-4}
    import least_action.train as module

    original = module.learning_rate

    def dies(epoch, *more):
        if epoch == touched + 17:
            raise KeyboardInterrupt
        return original(epoch, *more)

    monkeypatch.setattr(module, "learning_rate", dies)
    with pytest.raises(KeyboardInterrupt):
        train(small(**values, lr_after_99=1e-4), tmp_path / "cut")
    monkeypatch.setattr(module, "learning_rate", original)
    train(small(**values, lr_after_99=1e-4), tmp_path / "cut", resume=True)
    same(tmp_path / "settled", tmp_path / "cut")


def test_batches_cover_each_epoch_once_and_differ_between_epochs(small):
    config = small(batch_size=10)
    pairs = create_dataset(config).train
    orders = []
    for epoch in (0, 1):
        parts = [part for part, _ in batches(pairs, config, epoch, 0, 1)]
        order = [pair for part in parts for pair in zip(part.a_N.tolist(), part.b_N.tolist(), strict=True)]
        assert sorted(order) == sorted(zip(pairs.a_N.tolist(), pairs.b_N.tolist(), strict=True))
        orders.append(order)
    assert orders[0] != orders[1]
    assert [len(part) for part, _ in batches(pairs, config, 0, 0, 1)] == [10, 10, 4]
    ranks = [[(len(part), share) for part, share in batches(pairs, config, 0, rank, 2)] for rank in (0, 1)]
    assert ranks[0][0] == (5, 1.0)
    whole, _ = zip(*[(p, s) for p, s in batches(pairs, small(), 0, 0, 1)], strict=True)
    assert torch.equal(whole[0].y_N, pairs.y_N)


@pytest.mark.parametrize("changes", [{}, {"batch_size": 11, "model_type": "routed", "n_layers": 2}], ids=str)
def test_two_processes_equal_one(small, tmp_path, changes, train):
    config = small(dtype="float64", epochs=10, **changes)
    train(config, tmp_path / "one")
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    flags = ["--config", file, "--device", "cpu", "--threads", "1", "--num-processes", "2"]
    assert "2 processes" in output_of(*COMMAND, "train", *flags, "--output-dir", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["devices"]["world_size"] == 2
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-9, atol=1e-10)


def test_a_run_folder_holds_what_the_contract_names(small, tmp_path, train):
    train(small(model_type="routed_transformer"), tmp_path / "run", quiet=False)
    names = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    expected = {
        "config.yaml",
        "claims.json",
        "arrays.safetensors",
        "manifest.json",
        "metrics.jsonl",
        "history.parquet",
        "results.json",
        "report.html",
        "report.md",
    }
    expected |= {
        f"figures/{name}.svg" for name in ("training_curves", "spectral_analysis", "routing_heatmap", "curvature")
    }
    assert expected <= names
    history = MetricsHistory.load(tmp_path / "run")
    epochs, accuracy = history.series("test_acc")
    assert epochs == list(range(0, 31, 5))
    assert all(0 <= a <= 1 for a in accuracy)
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "run" / "history.parquet").to_pydict()
    assert table["epoch"] == epochs
    assert table["weight_hessian_trace"][1] is None
    assert table["weight_hessian_trace"][2] is not None


def test_a_loss_that_is_not_finite_ends_the_run_in_one_sentence(small, tmp_path, train):
    config = small(lr=1e18, epochs=50, model_type="baseline", n_layers=3, loss_dtype="float32")
    with pytest.raises(UserError, match="lr: 1e"):
        train(config, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert "lr" in manifest["reason"]


def test_a_tracker_that_is_not_installed_is_refused(small, tmp_path, train, monkeypatch):
    monkeypatch.setattr("studycore.run.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--tracker: wandb is not installed"):
        train(small(), tmp_path / "run", tracker="wandb")
    assert not (tmp_path / "run").exists()


FORMS = [
    {"recipe": "bounded_sphere", "activation": "relu", "init_std": 0.2, "weight_decay_rule": "all"},
    {"residual_norm": "none", "activation": "relu", "init_std": 0.2, "grad_clip": 0.5, "warmup_epochs": 30},
    {"model_type": "routed_transformer", "residual_norm": "none", "init_std": 0.2},
    {"model_type": "routed", "n_layers": 2},
    {"model_type": "baseline", "n_layers": 2, "recipe": "grokfast"},
    {"model_type": "baseline", "n_layers": 2, "recipe": "orthograd_stablemax", "mlp_bias": False},
    {"recipe": "constrained_norm", "residual_norm": "none", "init_std": 0.2, "weight_decay": 0.0},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_restructured_pass_trains_as_the_plain_one_over_200_steps(small, tmp_path, train, form):
    """float64: 1e-8 of each weight tensor's maximum, although every step goes on from the one before."""
    values = {"p": 11, "hidden_dim": 16, "dtype": "float64", "epochs": 200, "eval_every": 200, "log_every": 200}
    values |= {
        "lr": 1e-3,
        "weight_decay": 0.5,
        "compute_weight_curvature": False,
        "weight_curvature_interval": 200,
    } | form
    for forward in ("plain", "restructured"):
        train(small(**values, checkpoint_every=200, forward=forward), tmp_path / forward)
    for name, expected in weights(tmp_path / "plain").items():
        error = (weights(tmp_path / "restructured")[name] - expected).abs().max() / expected.abs().max()
        assert error < 1e-8, (name, float(error))


def test_eight_restructured_steps_equal_plain_ones_where_rounding_grows(small, tmp_path, train):
    """A pre-norm transformer at N(0, 0.02) doubles rounding errors every few steps, so only eight are compared."""
    values = {"p": 11, "hidden_dim": 16, "dtype": "float64", "n_layers": 2, "residual_norm": "layernorm", "epochs": 8}
    for forward in ("plain", "restructured"):
        train(small(**values, lr=1e-3, eval_every=2, log_every=2, forward=forward), tmp_path / forward)
    for name, expected in weights(tmp_path / "plain").items():
        tolerance = {"rtol": 1e-11, "atol": 1e-12 * float(expected.abs().max())}
        torch.testing.assert_close(weights(tmp_path / "restructured")[name], expected, **tolerance)


def test_rows_hold_layer_norms_and_the_inputs_derivatives_at_every_evaluation(small, tmp_path, train):
    train(small(n_layers=2), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert all({"jacobian_norm", "hessian_trace"} <= row.keys() for row in rows)
    detailed = [row for row in rows if "spectral_smoothness" in row]
    assert 1 < len(detailed) < len(rows)
    for row in detailed:
        layers = {name: value for name, value in row.items() if name.startswith("layer_weight_norm_")}
        assert "layer_weight_norm_blocks_1_query" in layers
        assert sum(value**2 for value in layers.values()) == pytest.approx(row["weight_norm"] ** 2, rel=1e-5)
        assert row["train_loss_float32"] == pytest.approx(row["train_loss"], rel=1e-4)
    train(small(sensitivity_every=10), tmp_path / "seldom")
    seldom = [row["epoch"] for row in read_rows(tmp_path / "seldom" / "metrics.jsonl") if "jacobian_norm" in row]
    assert seldom == [0, 10, 20, 30]


def test_new_pairs_are_those_whose_mirror_image_is_held_out_too(small):
    config = small(p=11, train_frac=0.4)
    probe = Probe.draw(create_dataset(config), config, "cpu")
    trained = set(zip(probe.data.train.a_N.tolist(), probe.data.train.b_N.tolist(), strict=True))
    pairs = list(zip(probe.all.a_N.tolist(), probe.all.b_N.tolist(), strict=True))
    assert probe.new_mask_N.tolist() == [(a, b) not in trained and (b, a) not in trained for a, b in pairs]
    # Who has learnt the unordered pairs by heart scores well on held-out pairs, and nothing on new ones.
    known = torch.tensor([(a, b) in trained or (b, a) in trained for a, b in pairs])
    logits = torch.nn.functional.one_hot(torch.where(known, probe.all.y_N, (probe.all.y_N + 1) % 11), 11).double()
    basics = measure_basics(Output(logits, logits, ()), probe, config)
    assert (basics["train_acc"], basics["new_pairs_acc"]) == (1, 0)
    assert 0.2 < basics["test_acc"] < 0.6


def test_composition_of_permutations_trains_without_spectra(small, tmp_path, train):
    train(small(operation="compose", p=120, train_frac=0.02, epochs=10), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert "weight_norm" in rows[-1] and "key_frequencies" not in rows[-1] and "gini_embedding" not in rows[-1]
    assert not (tmp_path / "run" / "arrays.safetensors").exists()


def test_a_notebook_trains_and_gets_the_history(small, tmp_path):
    history = Trainer(small(epochs=10), tmp_path / "run").train(device="cpu", threads=1)
    assert history.series("test_acc")[0] == [0, 5, 10]
    assert (tmp_path / "run" / "report.html").is_file()
    longer = Trainer(small(epochs=10), tmp_path / "run").train(resume=True, extra_epochs=5, device="cpu", threads=1)
    assert longer.series("test_acc")[0] == [0, 5, 10, 15]
