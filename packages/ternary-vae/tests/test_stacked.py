"""Runs in a stack are the runs alone: their numbers, ends, failures, checkpoints, and what happens when they are cut off."""

import json
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import BARE, CPU, rows_of, train_run, train_runs, weights_of

from studycore.checkpoints import read_index, steps
from studycore.errors import Stopped
from studycore.execution import Task, do_tasks
from studycore.jobs import Ended
from studycore.run import Run
from studycore.run_folder import read_results
from studycore.testing.interrupted import killed_at, signal_at
from studycore.testing.runs import same
from ternary_vae.checkpoint import find_checkpoint, load_model, start_model, stored_metrics
from ternary_vae.config import TrainConfig
from ternary_vae.optimizers import StackedAdamW
from ternary_vae.stacked import StackedRadii
from ternary_vae.stages import PER_RUN, not_stackable, shape_of

FROZEN = ["encoder_A", "encoder_B", "decoder_A", "controller"]
TINY = {
    "trits": 3, "latent_dim": 4, "encoder_sizes": [12, 8], "decoder_sizes": [8], "hidden_dim": 8, "batch_size": 10,
    "dtype": "float64",
}  # fmt: skip
LANES = [
    {"seed": 3, "lr": 1e-2},
    {"seed": 3, "lr": 2e-2, "curvature": 2.0, "max_radius": 0.65, "scheduler": "cosine"},
    {"seed": 4, "hierarchy_weight": 1.0, "richness_weight": 7.0, "separation_weight": 0.5, "epochs": 5},
    {"seed": 4, "lr": 5e-2, "early_stopping_patience": 2, "weight_decay": 0.3},
    {"seed": 4, "curvature": 0.5, "max_radius": 1.3, "scheduler": "step", "step_epochs": 2, "warmup_epochs": 1},
    {"seed": 3, "projection_seed": 8, "outer_radius": 0.8, "inner_radius": 0.3, "epochs": 3},
]
"""Runs of one shape that differ in what the runs of a stack may differ in."""
FORMS = [
    {"loss": "ordered", "view": "b", "code": "mean"},
    {"loss": "rich_hierarchy", "view": "a", "code": "sample", "deep_share": 0.0},
    {"loss": "ordered", "view": "a", "code": "sample", "radius": "euclidean", "use_dual_projection": False},
    {"loss": "rich_hierarchy", "view": "b", "code": "mean", "radius": "euclidean", "grad_clip": None},
    {"loss": "ordered", "view": "b", "code": "sample", "grad_clip": 0.01, "n_projection_layers": 2},
    {"loss": "rich_hierarchy", "view": "a", "code": "mean", "eval_every": 2, "checkpoint_every": 3},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Seed -> a run of the coverage stage to start from."""
    root = tmp_path_factory.mktemp("sources")
    made = {}
    for seed in (3, 4):
        config = TrainConfig(stages="coverage", seed=seed, coverage_epochs=3, coverage_lr=1e-2, **TINY)
        made[seed] = str(train_run(config, root / f"coverage_s{seed}"))
    return made


@pytest.fixture
def lanes(source):
    """The configurations of a stack's runs."""

    def make(form=None, chosen=LANES, **changes):
        base = {"epochs": 7, "scheduler": "constant", "checkpoint_every": 4, "stages": "hierarchy", **TINY}
        base |= {"start_projections": "drawn", "hierarchy_frozen": FROZEN}
        each = [{**base, **(form or {}), **lane, **changes} for lane in chosen]
        return [TrainConfig(**values, start=source[values["seed"]]) for values in each]

    return make


def state_of(folder: Path) -> tuple[str, str]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["state"], manifest["reason"]


def close(rows: list[dict], others: list[dict], tolerance: float = 1e-8) -> None:
    """The same epochs and names, and every loss and metric within the tolerance."""
    assert len(rows) == len(others)
    for one, other in zip(rows, others, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            expected = other[name] if isinstance(value, str) else pytest.approx(other[name], rel=0, abs=tolerance)
            assert value == expected, (name, one["epoch"], value, other[name])


def folders(root: Path, configs: list) -> list[Path]:
    return [root / f"run{s}" for s in range(len(configs))]


# -------------------------------------------------------------------------------------------------- the same numbers
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_stacked_runs_are_the_runs_alone(lanes, tmp_path, form):
    """float64, over the whole run: against the plain loop, which passes through encoder and decoder in every step."""
    configs = lanes(form)
    assert {shape_of(config) for config in configs} == {shape_of(configs[0])}
    assert [not_stackable(config) for config in configs] == [None] * len(configs)
    stacked = folders(tmp_path / "stack", configs)
    train_runs(configs, stacked)
    for folder, config in zip(stacked, configs, strict=True):
        alone = train_run(replace(config, forward="plain"), tmp_path / "alone" / folder.name)
        close(rows_of(folder), rows_of(alone))
        assert state_of(folder) == state_of(alone)
        assert (folder / "history.parquet").exists()
        for which in ("last", "best"):
            weights, expected = weights_of(folder, which), weights_of(alone, which)
            assert weights.keys() == expected.keys()
            for name, weight in weights.items():
                torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-8)
        first = start_model(config, find_checkpoint(config.start), {}).state_dict()
        moved = [name for name, weight in weights_of(alone).items() if not torch.equal(weight, first[name])]
        assert moved
        assert all(".radius_net." in name for name in moved)
        ours, theirs = (read_results(f)["metrics"] for f in (folder, alone))
        assert {name: value for name, value in ours.items() if not isinstance(value, str)} == pytest.approx(
            {name: theirs[name] for name in ours if not isinstance(theirs[name], str)}, rel=0, abs=1e-8
        )
    ends = [rows_of(folder)[-1]["epoch"] for folder in stacked]
    assert ends[2] == 5
    assert ends[5] == 3
    assert ends[0] == ends[1] == ends[4] == 7


TINIEST = {"float64": 1e-13, "float32": 1e-5}


def test_a_run_s_numbers_do_not_depend_on_its_place_in_the_stack(lanes, tmp_path):
    """To the bit, in float32 as well: what changes nothing is found by comparing histories bit for bit."""
    for dtype in ("float64", "float32"):
        form = {"loss": "rich_hierarchy", "view": "a", "code": "sample", "projection_dtype": dtype}
        configs = lanes(form, epochs=6, eval_every=2)
        root = tmp_path / dtype
        train_runs(configs, folders(root / "whole", configs))
        order = [4, 1, 3, 0, 5, 2]
        turned = [root / "turned" / f"run{s}" for s in order]
        train_runs([configs[s] for s in order], turned)
        train_runs(configs[:2], folders(root / "pair", configs[:2]))
        for s in range(6):
            same(root / "whole" / f"run{s}", root / "turned" / f"run{s}")
        for s in range(2):
            # Kernels of a batched product depend on how many there are: the last digits.
            close(rows_of(root / "whole" / f"run{s}"), rows_of(root / "pair" / f"run{s}"), TINIEST[dtype])


def test_what_changes_nothing_changes_not_a_bit(lanes, tmp_path):
    base = {"seed": 3, "lr": 1e-2}
    configs = lanes(
        chosen=[base, {**base, "coverage_weight": 10.0}, {**base, "encoder_b_lr": 0.01}, {**base, "lr": 2e-2}]
    )
    places = folders(tmp_path, configs)
    train_runs(configs, places)
    assert rows_of(places[0]) == rows_of(places[1]) == rows_of(places[2])
    assert rows_of(places[0]) != rows_of(places[3])


# --------------------------------------------------------------------------------------------- ends of single runs
def test_runs_that_end_early_leave_the_others_as_they_are(lanes, tmp_path):
    """Patience and fewer epochs: the rest is repacked."""
    long = lanes(chosen=[LANES[0], LANES[1]], epochs=9)
    short_lanes = lanes(chosen=[LANES[3], {**LANES[5], "epochs": 2}], lr=0.5)
    mixed = [short_lanes[0], long[0], short_lanes[1], long[1]]
    train_runs(mixed, folders(tmp_path / "mixed", mixed))
    train_runs(long, folders(tmp_path / "long", long))
    for s, k in ((1, 0), (3, 1)):
        same(tmp_path / "mixed" / f"run{s}", tmp_path / "long" / f"run{k}")
    assert rows_of(tmp_path / "mixed" / "run0")[-1]["epoch"] < 9, "patience ended it"
    assert rows_of(tmp_path / "mixed" / "run2")[-1]["epoch"] == 2
    assert all(state_of(f)[0] == "done" for f in folders(tmp_path / "mixed", mixed))


@pytest.mark.parametrize("often", [{}, {"eval_every": 3, "checkpoint_every": 2}], ids=str)
@pytest.mark.parametrize("lr", [1e120, 1e200])
def test_a_run_whose_loss_is_not_finite_fails_alone(lanes, tmp_path, lr, often):
    """Radii may be NaN while the losses before the update are not; and checkpoints fall between evaluations."""
    good = lanes({"grad_clip": None, **often}, chosen=LANES[:2])
    bad = lanes({"grad_clip": None, **often}, chosen=[{"seed": 3, "lr": lr}])
    train_runs([good[0], bad[0], good[1]], folders(tmp_path / "mixed", good + bad))
    train_runs(good, folders(tmp_path / "good", good))
    for s, k in ((0, 0), (2, 1)):
        same(tmp_path / "mixed" / f"run{s}", tmp_path / "good" / f"run{k}")
    state, reason = state_of(tmp_path / "mixed" / "run1")
    assert state == "failed"
    assert reason.startswith(f"lr: {lr} made ")
    assert "lower it" in reason
    assert int(reason.split(" epoch ")[1].split(";")[0]) <= 2, "it is not trained on"


# ----------------------------------------------------------------------------------------------- what may be stacked
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stages": "coverage_hierarchy"}, "other stages"),
        ({"stages": "coverage"}, "other stages"),
        ({"stages": "joint", "hierarchy_frozen": ["encoder_A", "decoder_A"]}, "other stages"),
        ({"hierarchy_frozen": ["encoder_A", "decoder_A"]}, "not frozen"),
        ({"hierarchy_frozen": ["encoder_A", "encoder_B"]}, "not frozen"),
        ({"loss": "geodesic"}, "geodesic"),
        ({"view": "both"}, "both views"),
        ({"projection_dropout": 0.1}, "dropout"),
        ({"train_fraction": 0.5}, "part of the operations"),
        ({"valuations": "shuffled"}, "valuations"),
        ({"forward": "plain"}, "plain"),
    ],
    ids=str,
)
def test_what_cannot_be_stacked_says_why(lanes, changes, reason):
    (config,) = lanes(chosen=[{"seed": 3}])
    assert not_stackable(config) is None
    assert reason in not_stackable(replace(config, **changes))


OTHER = {
    "trits": 4, "latent_dim": 5, "encoder_sizes": [9], "decoder_sizes": [9], "activation": "silu", "encoder_norm": True,
    "encoder_dropout": 0.1, "hidden_dim": 9, "n_projection_layers": 2, "projection_dropout": 0.1,
    "use_dual_projection": False, "use_controller": True, "radius": "euclidean", "dtype": "float32",
    "projection_dtype": "float32", "train_fraction": 0.5, "start_projections": "loaded", "stages": "coverage_hierarchy",
    "coverage_code": "mean", "hierarchy_frozen": ["encoder_A"], "batch_size": 9, "deep_share": 0.1, "grad_clip": None,
    "loss": "rich_hierarchy", "view": "a", "code": "sample", "eval_every": 2, "checkpoint_every": 3, "forward": "plain",
    "bands": "even", "valuations": "shuffled",
}  # fmt: skip
"""Another value of each field that the runs of a stack share."""


def test_shapes_separate_what_may_not_be_stacked(lanes):
    (config,) = lanes(chosen=[{"seed": 3}])
    config = replace(config, hierarchy_frozen=[*config.hierarchy_frozen, "controller"])
    # Runs of decode ball, and so of its flat twin, have no stage that trains radii alone.
    assert set(OTHER) | set(PER_RUN) | {"decode", "geometry"} == {f.name for f in fields(TrainConfig)}
    assert not set(OTHER) & set(PER_RUN)
    assert shape_of(config)
    for name, value in OTHER.items():
        assert shape_of(replace(config, **{name: value})) != shape_of(config), name
    alike = {"seed": 9, "lr": 1.0, "start": "elsewhere", "curvature": 0.5, "coverage_weight": 3.0, "epochs": 99}
    assert shape_of(replace(config, **alike)) == shape_of(config)
    assert shape_of(replace(config, forward="plain")) == "", "trained alone"


# -------------------------------------------------------------------------------------------------- killed and stopped
def killed(configs, where, count, owner=StackedAdamW, name="step"):
    """Whether SIGKILL ended the training of runs, at the count-th call of a function."""
    return killed_at(owner, name, count, lambda: train_runs(configs, where, resume=True))


CUT = {
    "every epoch": {"eval_every": 1, "checkpoint_every": 4},
    "evaluations and checkpoints apart": {"eval_every": 2, "checkpoint_every": 3},
    "samples": {"loss": "rich_hierarchy", "code": "sample", "view": "a", "checkpoint_every": 2},
}


@pytest.mark.parametrize("name", CUT)
def test_a_stack_that_was_killed_goes_on_to_the_bit(lanes, tmp_path, name):
    """SIGKILL before any checkpoint; between two of them. An epoch has 3 steps."""
    configs = lanes(CUT[name], chosen=[LANES[0], LANES[1], LANES[4]])
    straight, cut = folders(tmp_path / "straight", configs), folders(tmp_path / "cut", configs)
    for count in (2, 3 * 5 + 2):
        assert killed(configs, cut, count)
    assert len(steps(cut[0] / "checkpoints")) >= 1
    assert state_of(cut[0])[0] == "running"
    train_runs(configs, cut, resume=True)
    train_runs(configs, straight)
    for one, other in zip(straight, cut, strict=True):
        same(one, other)
        assert len(json.loads((other / "manifest.json").read_text())["resumed"]) == 2


def test_a_run_of_a_stack_may_go_on_alone_and_back_in_a_stack(lanes, tmp_path):
    configs = lanes({"eval_every": 2, "checkpoint_every": 3}, chosen=[LANES[0], LANES[1], LANES[4]])
    straight, cut = folders(tmp_path / "straight", configs), folders(tmp_path / "cut", configs)
    train_runs(configs, straight)
    assert killed(configs, cut, 3 * 5 + 2)
    train_run(configs[1], cut[1], resume=True)
    close(rows_of(cut[1]), rows_of(straight[1]))
    for name, weight in weights_of(cut[1]).items():
        torch.testing.assert_close(weight, weights_of(straight[1])[name], rtol=0, atol=1e-8)
    train_runs([configs[0], configs[2]], [cut[0], cut[2]], resume=True)
    same(straight[0], cut[0])
    same(straight[2], cut[2])


def test_runs_saved_alone_and_together_go_on_together(lanes, tmp_path):
    configs = lanes(chosen=[LANES[0], LANES[1], LANES[4]])
    straight, cut = folders(tmp_path / "straight", configs), folders(tmp_path / "cut", configs)
    train_runs(configs, straight)
    assert killed(configs[:2], cut[:2], 3 * 5)
    assert killed(configs[2:], cut[2:], 3 * 5)
    train_runs(configs, cut, resume=True)
    for one, other in zip(straight, cut, strict=True):
        same(one, other)


STOPS = {
    "before any step": (StackedRadii, "radii", 1),
    "in the first epoch": (StackedAdamW, "step", 1),
    "between two checkpoints": (StackedAdamW, "step", 3 * 4 + 2),
    "while the runs are judged": (StackedRadii, "measure", 3 * 2 + 2),
    "while they are brought to the next epoch": (Run, "any_process", 3 * 3 + 2),
}


@pytest.mark.parametrize("often", [{}, {"eval_every": 2, "checkpoint_every": 3}], ids=str)
@pytest.mark.parametrize("stop", STOPS)
def test_a_stack_that_was_stopped_has_saved_every_run_and_goes_on_to_the_bit(lanes, tmp_path, monkeypatch, stop, often):
    configs = lanes(often, chosen=[LANES[0], LANES[1], LANES[4]])
    straight, cut = folders(tmp_path / "straight", configs), folders(tmp_path / "cut", configs)
    train_runs(configs, straight)
    owner, name, count = STOPS[stop]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, getattr(owner, name))
        signal_at(owner, name, count, signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            train_runs(configs, cut)
    assert {state_of(folder)[0] for folder in cut} == {"stopped"}
    (step,) = {steps(folder / "checkpoints")[-1].name for folder in cut}
    assert {rows_of(folder)[-1]["epoch"] for folder in cut} == {rows_of(cut[0])[-1]["epoch"]}
    train_runs(configs, cut, resume=True)
    for one, other in zip(straight, cut, strict=True):
        same(one, other)
    assert rows_of(cut[0])[-1]["step"] > int(step.removeprefix("step-"))


def test_checkpoints_of_a_stack_load_like_any(lanes, tmp_path):
    """Checksums, probe, and the stored metrics computed again by the whole model."""
    configs = lanes({"loss": "rich_hierarchy", "view": "a", "eval_every": 2, "checkpoint_every": 3}, chosen=LANES[:3])
    places = folders(tmp_path, configs)
    train_runs(configs, places)
    for folder, config in zip(places, configs, strict=True):
        kept = steps(folder / "checkpoints")
        assert len(kept) >= 2
        for path in kept:
            checkpoint, stored, _ = load_model(str(path))
            assert stored == config
            assert stored_metrics(checkpoint).keys() >= {"coverage", "hierarchy", "somers_d", "richness"}
        best = load_model(str(folder))[0]
        values = [row["hierarchy"] for row in rows_of(folder)]
        assert stored_metrics(best)["hierarchy"] == min(values)
        assert best.path.name == read_index(folder / "checkpoints")["best"]


# ------------------------------------------------------------------------------------------------ jobs of a sweep
def done_by_a_worker(configs, where) -> list[Ended]:
    return do_tasks([Task(BARE, "train", c, f, CPU, (), {}) for c, f in zip(configs, where, strict=True)])


def test_jobs_whose_worker_died_go_on_where_each_of_them_stands(lanes, tmp_path):
    """One run has ended by then, one was just saved, and two have no checkpoint yet."""
    configs = lanes(chosen=[LANES[0], LANES[5], LANES[1], LANES[4]])
    straight, cut = folders(tmp_path / "straight", configs), folders(tmp_path / "cut", configs)
    assert done_by_a_worker(configs, straight) == [Ended("done")] * 4
    # LANES[5] has 3 epochs and is saved then; the others at 4.
    assert killed(configs, cut, 2, Run, "save")
    assert [state_of(folder)[0] for folder in cut] == ["running", "done", "running", "running"]
    assert [(folder / "checkpoints").exists() for folder in cut] == [True, True, False, False]
    before = (cut[1] / "results.json").stat().st_mtime_ns
    assert done_by_a_worker(configs, cut) == [Ended("done")] * 4
    assert (cut[1] / "results.json").stat().st_mtime_ns == before
    for one, other in zip(straight, cut, strict=True):
        same(one, other)


def test_runs_saved_at_step_0_and_runs_never_begun_are_both_trained(lanes, tmp_path, monkeypatch):
    configs = lanes(chosen=[LANES[0], LANES[1]])
    straight, cut = folders(tmp_path / "straight", configs), folders(tmp_path / "cut", configs)
    assert done_by_a_worker(configs, straight) == [Ended("done")] * 2
    with monkeypatch.context() as patch:
        patch.setattr(StackedRadii, "radii", StackedRadii.radii)
        signal_at(StackedRadii, "radii", 1, signal.SIGTERM)  # before the loop
        with pytest.raises(Stopped):
            train_runs(configs[:1], cut[:1])
    assert [path.name for path in steps(cut[0] / "checkpoints")] == ["step-0"]
    assert done_by_a_worker(configs, cut) == [Ended("done")] * 2
    for one, other in zip(straight, cut, strict=True):
        same(one, other)


def test_a_run_is_brought_up_to_date_before_it_is_measured_and_measuring_writes_nothing(lanes, tmp_path, monkeypatch):
    """What is saved is the run's own model: the loop copies into it first, whatever it measures."""
    fresh, measure = [], StackedRadii.measure

    def watching(self, s):
        own = self._net(self.lanes[s]).state_dict()
        before = {name: weight.clone() for name, weight in own.items()}
        metrics = measure(self, s)
        assert all(torch.equal(before[name], weight) for name, weight in own.items())
        fresh.append(all(torch.equal(own[name], w[s]) for name, w in self.optimizer.weights.items()))
        return metrics

    monkeypatch.setattr(StackedRadii, "measure", watching)
    configs = lanes(chosen=LANES[:2])
    train_runs(configs, folders(tmp_path / "stack", configs))
    assert len(fresh) > 10 and all(fresh)
