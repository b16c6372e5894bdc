"""Training: reproducible, resumable to the bit, the same on two processes, and finite or over."""

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from conftest import rows_of, train_run, weights_of

import studycore.run
import ternary_vae.lanes
import ternary_vae.train as module
from studycore.checkpoints import load_checkpoint, read_index
from studycore.configuration import to_dict
from studycore.errors import Stopped, UserError
from studycore.testing.interrupted import killed_at, signal_at
from studycore.testing.runs import output_of, same
from ternary_vae.checkpoint import find_checkpoint, load_model, start_model
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations, training_indices
from ternary_vae.forward import StageForward
from ternary_vae.lanes import WholeModel
from ternary_vae.metrics.radii import hierarchy_ceiling
from ternary_vae.model import create_model
from ternary_vae.stages import stages_of
from ternary_vae.train import has_ended, score


@pytest.fixture(autouse=True)
def without_final_metrics(monkeypatch):
    """They have tests of their own."""
    monkeypatch.setattr(module, "run_metrics", lambda *_: {})


def loss_of(row: dict) -> float:
    return sum(value for name, value in row.items() if name.startswith("loss_"))


def numbers(row: dict) -> dict[str, float]:
    return {name: value for name, value in row.items() if not isinstance(value, str)}


# ---------------------------------------------------------------------------------------------------- the loop's numbers


def test_the_first_twenty_steps_are_the_recorded_ones(small, tmp_path):
    """A change that moves these numbers changes every result; do it on purpose, and say so in the change log."""
    config = small(batch_size=27, coverage_epochs=10, epochs=10, coverage_patience=None)
    train_run(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["step"] == 20
    losses = [loss_of(row) for row in rows if loss_of(row)]
    recorded = json.loads((Path(__file__).parent / "loss_series.json").read_text())
    assert losses == pytest.approx(recorded, rel=1e-5)


def test_a_run_is_a_function_of_its_configuration(small, tmp_path):
    config = small(stages="joint", encoder_dropout=0.2, projection_dropout=0.1, code="sample")
    train_run(config, tmp_path / "one")
    torch.rand(100)  # the global stream plays no part
    train_run(config, tmp_path / "two")
    same(tmp_path / "one", tmp_path / "two")
    train_run(small(stages="joint", seed=4), tmp_path / "other")
    assert loss_of(rows_of(tmp_path / "other")[-1]) != loss_of(rows_of(tmp_path / "one")[-1])


def test_evaluating_leaves_training_alone(small, tmp_path):
    for name, changes in (("often", {"checkpoint_every": 1}), ("seldom", {"eval_every": 6, "checkpoint_every": 6})):
        train_run(small(encoder_dropout=0.2, coverage_patience=None, **changes), tmp_path / name)
    often, seldom = (weights_of(tmp_path / name) for name in ("often", "seldom"))
    assert all(torch.equal(often[name], seldom[name]) for name in often)


def test_both_ways_of_the_forward_pass_train_the_same_model(small, tmp_path):
    for forward in ("restructured", "plain"):
        config = small(forward=forward, dtype="float64", view="both", code="sample", encoder_dropout=0.2)
        train_run(config, tmp_path / forward)
    for one, other in zip(rows_of(tmp_path / "restructured"), rows_of(tmp_path / "plain"), strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("loss", ["ordered", "rich_hierarchy", "geodesic"])
def test_losses_fall(small, tmp_path, loss):
    config = small(
        stages="joint", loss=loss, epochs=60, eval_every=20, checkpoint_every=60, view="both", warmup_epochs=1
    )
    if loss == "geodesic":
        # Its terms rise with tau; tau is 1 from the first epoch on when the ramp is that short.
        config = small(**{**to_dict(config), "use_controller": True})
    train_run(config, tmp_path / "run")
    losses = [loss_of(row) for row in rows_of(tmp_path / "run")[1:]]
    assert losses[-1] < 0.7 * losses[0]


def test_coverage_and_hierarchy_are_learned_from_scratch(small, tmp_path):
    config = small(
        encoder_sizes=[48, 32], decoder_sizes=[32], hidden_dim=32, coverage_epochs=120, epochs=150, eval_every=10,
        checkpoint_every=1000,
    )  # fmt: skip
    train_run(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    covered = [row for row in rows if row["stage"] == "coverage"]
    assert [row["coverage"] for row in covered[-3:]] == [1, 1, 1]
    assert covered[-1]["epoch"] < 120, "and ended early, by coverage_patience"
    assert {row["coverage"] for row in rows[len(covered) :]} == {1}, "the partial freeze keeps coverage"
    ceiling = hierarchy_ceiling(Operations.all(3).v_N.numpy())
    assert abs(rows[len(covered)]["hierarchy"]) < 0.9 * ceiling
    assert rows[-1]["hierarchy"] == pytest.approx(-ceiling, abs=1e-9)
    assert rows[-1]["somers_d"] == -1
    assert rows[-1]["min_level_gap"] > 0
    assert rows[-1]["tied_radius_share"] == 0


def test_a_frozen_random_decoder_is_the_original_study_s_plateau(tmp_path):
    """It trained the encoders from scratch against a random decoder and called the result a research problem."""
    final = {}
    for frozen in ([], ["decoder_A"]):
        config = TrainConfig(
            trits=5, stages="coverage", coverage_frozen=frozen, seed=0, latent_dim=6, encoder_sizes=[48, 32],
            decoder_sizes=[16, 32], hidden_dim=8, coverage_epochs=60, batch_size=27, coverage_lr=5e-3, eval_every=60,
            checkpoint_every=1000,
        )  # fmt: skip
        folder = train_run(config, tmp_path / f"run-{len(frozen)}")
        final[bool(frozen)] = rows_of(folder)[-1]["coverage"]
        drawn, kept = create_model(config, 0).state_dict(), weights_of(folder)
        decoder = [torch.equal(drawn[name], kept[name]) for name in kept if name.startswith("decoder_A")]
        assert all(decoder) if frozen else not any(decoder)
    assert final[False] == 1.0
    assert final[True] < 0.6


def test_unseen_operations_are_not_trained_on(small, tmp_path, monkeypatch):
    config = small(train_fraction=0.5, stages="joint", epochs=2)
    shown = set()
    original = StageForward.forward

    def forward(self, batch, positions_N, noise_ND):
        shown.update(batch.index_N.tolist())
        return original(self, batch, positions_N, noise_ND)

    monkeypatch.setattr(StageForward, "forward", forward)
    train_run(config, tmp_path / "run")
    assert shown == set(training_indices(3, 0.5, config.seed).tolist())
    assert len(shown) == 14
    row = rows_of(tmp_path / "run")[-1]
    assert row["coverage"] == pytest.approx((14 * row["coverage_seen"] + 13 * row["coverage_unseen"]) / 27)


def test_patience_ends_a_stage(small):
    def ends(stage, rows):
        rows = [{"stage": stage.name, "min_level_gap": 0.0, "coverage": 1.0, **row} for row in rows]
        return [has_ended(rows[: k + 1], stage) for k in range(len(rows))]

    coverage, hierarchy = stages_of(small(early_stopping_patience=2, coverage_patience=2))
    order = [{"hierarchy": h} for h in (-0.1, -0.5, -0.4, 0.9, -0.6)]
    assert ends(hierarchy, order) == [False, False, False, True, False]
    # A hierarchy that does not exist, of radii that are all equal, is the worst.
    assert ends(hierarchy, [{}, {"hierarchy": 0.9}, {}, {}]) == [False, False, False, True]
    covered = [{"coverage": c} for c in (1.0, 0.9, 1.0, 1.0)]
    assert ends(coverage, covered) == [False, False, False, True]
    assert ends(coverage, [{"coverage": c} for c in (0.9, 0.5, 0.5, 0.5)]) == [False] * 4, "the last stage alone waits"
    seen = [{"coverage": 0.5, "coverage_seen": 1.0}] * 2
    assert ends(coverage, seen) == [False, True]
    assert not has_ended([], hierarchy)
    earlier = [{"stage": "coverage", "coverage": 1.0}] * 9
    assert not has_ended([*earlier, {"stage": "hierarchy", "coverage": 1.0}], hierarchy), "stages do not mix"
    coverage, hierarchy = stages_of(small(early_stopping_patience=None, coverage_patience=None))
    assert not any(ends(hierarchy, order * 9) + ends(coverage, covered * 9))
    (alone,) = stages_of(small(stages="coverage", early_stopping_patience=2, coverage_patience=None))
    assert ends(alone, [{"coverage": c} for c in (0.9, 0.5, 0.5)]) == [False, False, True]


def test_the_best_is_chosen_by_what_training_sees_and_by_gaps_where_the_order_is_perfect(small):
    coverage, hierarchy = stages_of(small())
    (joint,) = stages_of(small(stages="joint"))
    seen = {"coverage": 0.9, "coverage_seen": 0.5, "coverage_unseen": 0.95}
    assert score(seen, coverage) == 0.5
    perfect = {"coverage": 1.0, "hierarchy": -0.832, "min_level_gap": 0.002}
    assert score({**perfect, "min_level_gap": 0.006}, hierarchy) > score(perfect, hierarchy)
    assert score({**perfect, "hierarchy": -0.83, "min_level_gap": 0.9}, hierarchy) < score(perfect, hierarchy)
    assert score({**perfect, "coverage": 0.2}, hierarchy) == score(perfect, hierarchy)
    assert score({**perfect, "coverage": 0.2}, joint) < score({**perfect, "hierarchy": -0.7}, joint)


# ------------------------------------------------------------------------------------------------------------- resuming


INTERRUPTED = {
    "coverage_hierarchy": {"coverage_patience": None},
    "joint": {"stages": "joint", "epochs": 12},
    "sample": {"code": "sample", "view": "both", "hierarchy_frozen": ["decoder_A"]},
    "evaluations and checkpoints apart": {"eval_every": 2, "checkpoint_every": 3, "coverage_patience": None},
    "ball": {
        "decode": "ball", "stages": "joint", "view": "a", "bands": "prior", "encoder_a_lr": 1.0, "epochs": 12, "projection_dropout": 0.1,
    },
    "patience": {"stages": "joint", "epochs": 40, "early_stopping_patience": 4, "lr": 0.05},
    "level means": {"stages": "joint", "epochs": 12, "loss": "rich_hierarchy", "code": "sample"},
    "controller and dropout": {
        "loss": "geodesic", "use_controller": True, "encoder_dropout": 0.1, "projection_dropout": 0.1,
        "train_fraction": 0.8, "scheduler": "step", "step_epochs": 2,
    },
}  # fmt: skip


PLACES = {
    "step": (WholeModel, "backward"),
    "measure": (WholeModel, "measure"),
    "optimizer": (ternary_vae.lanes, "create_optimizer"),
    "checkpoint": (studycore.run, "save_checkpoint"),
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_run_that_was_killed_again_and_again_is_the_same_run(small, tmp_path, name):
    """SIGKILL: in the first steps, before any checkpoint; after a save; between the checkpoints; after a row."""
    config = small(**INTERRUPTED[name])
    for place, count in (("step", 5), ("checkpoint", 1), ("step", 14), ("measure", 2)):
        act = lambda: train_run(config, tmp_path / "cut", resume=(tmp_path / "cut").exists())  # noqa: E731
        assert killed_at(*PLACES[place], count, act), (place, count)
    assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["state"] == "running"
    train_run(config, tmp_path / "cut", resume=True)
    train_run(config, tmp_path / "straight")
    same(tmp_path / "straight", tmp_path / "cut")
    if name == "patience":
        assert rows_of(tmp_path / "cut")[-1]["epoch"] < 40, "patience ended it"


STOPS = {
    "steps": [("step", 2), ("step", 9)],
    "last step of the first stage": [("step", 18)],
    "start of the second stage": [("optimizer", 2)],
    "before any step": [("optimizer", 1), ("measure", 3)],
}


@pytest.mark.parametrize(
    ("name", "stops"),
    [(name, "steps") for name in INTERRUPTED]
    + [
        (name, stops)
        for name in ("coverage_hierarchy", "evaluations and checkpoints apart")
        for stops in list(STOPS)[1:]
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_bit(small, tmp_path, name, stops, monkeypatch):
    config = small(**INTERRUPTED[name])
    train_run(config, tmp_path / "straight")
    for place, count in STOPS[stops]:
        with monkeypatch.context() as patch:
            patch.setattr(*PLACES[place], getattr(*PLACES[place]))
            signal_at(*PLACES[place], count, signal.SIGTERM)
            with pytest.raises(Stopped, match="SIGTERM"):
                train_run(config, tmp_path / "cut", resume=(tmp_path / "cut").exists())
        assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["state"] == "stopped"
    train_run(config, tmp_path / "cut", resume=True)
    same(tmp_path / "straight", tmp_path / "cut")


def test_resuming_refuses_another_configuration(small, tmp_path):
    train_run(small(), tmp_path / "run")
    with pytest.raises(UserError, match=r"lr: stored 0.01, given 0.5"):
        train_run(small(lr=0.5), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="holds a run already"):
        train_run(small(), tmp_path / "run")


# ------------------------------------------------------------------------------------------------------ several processes


@pytest.mark.parametrize(
    "changes",
    [
        {"view": "both", "code": "sample", "train_fraction": 0.9},
        {"stages": "joint", "loss": "geodesic", "use_controller": True},
    ],
    ids=str,
)
def test_two_processes_equal_one(small, tmp_path, changes):
    """At batches of 11, 11 and what is left: each process's part is of another size."""
    config = small(dtype="float64", batch_size=11, deep_share=0.3, coverage_patience=None, **changes)
    train_run(config, tmp_path / "one")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(to_dict(config)))
    flags = ["--config", str(tmp_path / "c.yaml"), "--device", "cpu", "--threads", "1", "--num-processes", "2"]
    output_of("-m", "ternary_vae", "train", *flags, "--output-dir", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["devices"]["world_size"] == 2
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert numbers(one) == pytest.approx(numbers(two), rel=1e-6, abs=1e-12)
    ours, theirs = (weights_of(tmp_path / name) for name in ("one", "two"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------------------- starts and their faults


def test_a_hierarchy_stage_starts_from_a_verified_checkpoint(small, tmp_path):
    source = train_run(small(stages="coverage"), tmp_path / "source")
    config = small(stages="hierarchy", start=str(source))
    folder = train_run(config, tmp_path / "run")
    _, _, before = load_model(str(source))
    after = weights_of(folder)
    for name, weight in before.state_dict().items():
        frozen = name.startswith(("encoder_A", "decoder_A"))
        assert torch.equal(weight, after[name]) or not frozen, name
    assert rows_of(folder)[0]["coverage"] == rows_of(source)[-1]["coverage"]
    assert rows_of(folder)[0]["step"] == 0


def test_a_start_of_another_architecture_is_refused(small, tmp_path):
    source = train_run(small(stages="coverage"), tmp_path / "source")
    for changes in (
        {"hidden_dim": 16},
        {"curvature": 0.5},
        {"max_radius": 0.9},
        {"projection_dropout": 0.1},
        {"latent_dim": 5},
    ):
        (field,) = changes
        config = small(stages="hierarchy", start=str(source), **changes)
        with pytest.raises(UserError, match=f"another architecture: {field} .* in it, .* asked for"):
            train_run(config, tmp_path / "run")
    drawn = small(stages="hierarchy", start=str(source), start_projections="drawn", encoder_sizes=[4])
    with pytest.raises(UserError, match="encoder_sizes"):
        train_run(drawn, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_projections_may_be_drawn_anew(small, tmp_path):
    source = train_run(small(stages="coverage"), tmp_path / "source")
    config = small(
        stages="hierarchy", start=str(source), start_projections="drawn", hidden_dim=16, curvature=0.5,
        projection_seed=8, epochs=1,
    )  # fmt: skip
    fresh = start_model(config, find_checkpoint(source), {})
    stored = load_model(str(source))[2].state_dict()
    drawn = create_model(config, 0, projection_seed=8).state_dict()
    for name, weight in fresh.state_dict().items():
        assert torch.equal(weight, (drawn if name.startswith("projection") else stored)[name]), name
    folder = train_run(config, tmp_path / "run")
    last = read_index(folder / "checkpoints")["last"]
    assert load_checkpoint(folder / "checkpoints" / last).config["curvature"] == 0.5
    load_model(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage_lr": 1e30}, "^coverage_lr: 1e\\+30 made .* (nan|inf) at coverage epoch .*; lower it"),
        ({"stages": "joint", "lr": 1e30}, "^lr: 1e\\+30 made .* (nan|inf) at joint epoch .*; lower it"),
        # A checkpoint that falls between evaluations must not see it either.
        (
            {"stages": "joint", "lr": 1e30, "eval_every": 4, "checkpoint_every": 1},
            "^lr: 1e\\+30 made .* (nan|inf) at joint epoch .*; lower it",
        ),
    ],
    ids=str,
)
def test_a_loss_that_is_not_finite_ends_the_run_in_one_sentence(small, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train_run(small(grad_clip=None, **changes), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert "lr" in manifest["reason"]
