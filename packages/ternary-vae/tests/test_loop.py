"""What the loop feeds on: its rows, draws, rates and best checkpoint are those of the right stage, update and operations."""

import json
import math

import pytest
import torch
from conftest import rows_of, train_run, weights_of

import ternary_vae.train as module
from studycore.checkpoints import load_checkpoint, read_index
from studycore.models import count_parameters
from studycore.run_folder import read_manifest
from studycore.streams import derive_seed
from ternary_vae.checkpoint import find_checkpoint, load_model, start_model
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations, training_indices
from ternary_vae.forward import set_trained
from ternary_vae.lanes import WholeModel
from ternary_vae.losses import first_variances
from ternary_vae.metrics.evaluate import all_metrics, radii
from ternary_vae.model import create_model
from ternary_vae.optimizers import create_optimizer
from ternary_vae.schedules import coverage_rate
from ternary_vae.stages import stages_of
from ternary_vae.train import console, score


@pytest.fixture(autouse=True)
def without_final_metrics(monkeypatch):
    """They have tests of their own."""
    monkeypatch.setattr(module, "run_metrics", lambda *_: {})


def losses(row):
    return {name: value for name, value in row.items() if name.startswith("loss_")}


def test_a_row_s_losses_are_means_over_the_updates_since_the_row_before(small, tmp_path):
    every, third = (
        rows_of(train_run(small(stages="joint", epochs=5, eval_every=n, checkpoint_every=9), tmp_path / str(n)))
        for n in (1, 3)
    )
    assert [row["epoch"] for row in third] == [0, 3, 5]
    assert losses(every[0]) == losses(third[0]) == {}, "before the first update there is none"
    for row, own in ((third[1], every[1:4]), (third[2], every[4:6])):
        for name, value in losses(row).items():
            assert value == pytest.approx(sum(one[name] for one in own) / len(own), rel=1e-12)


def test_rows_hold_what_the_stage_trains_and_count_updates(small, tmp_path):
    folder = train_run(small(batch_size=10, coverage_epochs=2, epochs=2, coverage_patience=None), tmp_path / "run")
    rows = rows_of(folder)
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        *(("coverage", e) for e in range(3)), *(("hierarchy", e) for e in range(3)),
    ]  # fmt: skip
    per_epoch = rows[1]["step"]
    assert [row["step"] for row in rows] == [0, per_epoch, 2 * per_epoch, 2 * per_epoch, 3 * per_epoch, 4 * per_epoch]
    assert not any("hierarchy" in row for row in rows[:3]) and all("somers_d" in row for row in rows[3:])
    manifest = read_manifest(folder)
    assert manifest["parameters"] == count_parameters(create_model(small(), 0))
    assert set(manifest["data_fingerprints"]) == {"training operations"}


def test_the_best_checkpoint_is_of_the_last_stage_although_coverage_scores_higher(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "score", lambda metrics, stage: score(metrics, stage) + 5 * (stage.name == "coverage"))
    config = small(coverage_epochs=2, epochs=6, checkpoint_every=1)
    folder, (_, hierarchy) = train_run(config, tmp_path / "run"), stages_of(config)
    rows = [row for row in rows_of(folder) if row["stage"] == "hierarchy"]
    best = max(rows, key=lambda row: score(row, hierarchy))
    place = find_checkpoint(folder)
    assert place.name == f"step-{best['step']}" == read_index(folder / "checkpoints")["best"]
    state = load_checkpoint(place).state
    assert (state["loop"], state["best"]) == ("hierarchy", score(best, hierarchy))
    assert state["state"]["metrics"].items() <= best.items()
    assert (
        load_checkpoint(folder / "checkpoints" / read_index(folder / "checkpoints")["last"]).state["best"]
        == state["best"]
    )


@pytest.mark.parametrize("view", ["a", "b"])
def test_rows_are_of_the_view_that_is_trained(small, tmp_path, view):
    folder = train_run(small(stages="joint", view=view, epochs=2), tmp_path / "run")
    config, model = load_model(str(folder / "checkpoints" / read_index(folder / "checkpoints")["last"]))[1:]
    metrics = all_metrics(model, Operations.all(3), "b", config.seed)
    assert rows_of(folder)[-1]["hierarchy"] == metrics[f"hierarchy_{view.upper()}"]
    assert metrics["hierarchy_A"] != metrics["hierarchy_B"]


@pytest.mark.parametrize("dropout", ["encoder_dropout", "projection_dropout"])
def test_dropout_is_drawn_anew_in_every_update_from_seed_stage_and_update(small, tmp_path, monkeypatch, dropout):
    seeds, set_seed = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or set_seed(seed))
    config = small(stages="joint", epochs=3, view="both", **{dropout: 0.3})
    updates = rows_of(train_run(config, tmp_path / "run"))[-1]["step"]
    assert seeds == [derive_seed(3, "dropout", "joint", update, 0) for update in range(updates)]
    assert len(set(seeds)) == updates > 3


def test_dropout_masks_differ_from_one_update_to_the_next(small, tmp_path, monkeypatch):
    masks, forward = [], torch.nn.Dropout.forward

    def keeping(self, x):
        out = forward(self, x)
        if self.training:  # the radius net's: a loss of radii looks at no direction
            masks.append(((out == 0) & (x != 0)).flatten()[:40])
        return out

    monkeypatch.setattr(torch.nn.Dropout, "forward", keeping)
    updates = rows_of(train_run(small(stages="joint", epochs=3, projection_dropout=0.5), tmp_path / "run"))[-1]["step"]
    assert len(masks) >= updates > 6
    assert all(8 <= int(mask.sum()) <= 32 for mask in masks)
    assert not any(torch.equal(one, other) for k, one in enumerate(masks) for other in masks[:k])


@pytest.mark.parametrize(("field", "still", "moves"), [("encoder_b_lr", "encoder_B", "encoder_A"), ("encoder_a_lr", "encoder_A", "encoder_B")])  # fmt: skip
def test_a_factor_of_0_on_an_encoders_rate_leaves_it_as_it_is(small, tmp_path, field, still, moves):
    config = small(stages="joint", view="both", epochs=2, **{"encoder_a_lr": 0.5, field: 0.0})
    began, ended = create_model(config, 3).state_dict(), weights_of(train_run(config, tmp_path / "run"))
    same = {part: all(torch.equal(began[k], ended[k]) for k in began if k.startswith(part)) for part in (still, moves, "decoder_A")}  # fmt: skip
    assert same == {still: True, moves: False, "decoder_A": False}


def test_every_update_has_its_own_rate_times_the_parts_factor(small, tmp_path, monkeypatch):
    config = small(stages="joint", view="both", epochs=2, encoder_a_lr=0.25, scheduler="cosine", weight_decay=0.125)
    rates = []
    backward = WholeModel.backward

    def keeping(self, loss):
        if rates:  # of the update before
            rates[-1].update({g["factor"]: g["lr"] for g in self.optimizer.param_groups})
        rates.append({})
        assert {g["weight_decay"] for g in self.optimizer.param_groups} == {0.125}
        return backward(self, loss)

    monkeypatch.setattr(WholeModel, "backward", keeping)
    per_epoch = rows_of(train_run(config, tmp_path / "run"))[1]["step"]
    for update, rate in enumerate(rates[:-1]):
        lr = config.lr * (1 + math.cos(math.pi * update / per_epoch / 2)) / 2
        assert rate == pytest.approx({0.25: 0.25 * lr, 1.0: lr})
    assert len({rate[1.0] for rate in rates[:-1]}) == len(rates) - 1


def test_first_variances_are_of_the_training_operations_when_the_stage_begins(small, tmp_path):
    config = small(stages="joint", view="a", epochs=2, train_fraction=0.5, radius="euclidean")
    folder = train_run(config, tmp_path / "run")
    state = load_checkpoint(folder / "checkpoints" / read_index(folder / "checkpoints")["last"]).state["state"]
    training = Operations.all(3)[training_indices(3, 0.5, 3)]
    norm_N = radii(create_model(config, 3).eval(), training, "a")[1]
    assert state["variances"] == pytest.approx(first_variances(norm_N, training.v_N, 3).tolist(), rel=1e-9)


def test_batches_are_drawn_for_each_stage_by_its_own_name(small, tmp_path, monkeypatch):
    seeds = []
    batches = module.Batches
    monkeypatch.setattr(module, "Batches", lambda *arguments: seeds.append(arguments[-1]) or batches(*arguments))
    train_run(small(coverage_epochs=1, epochs=1), tmp_path / "run")
    assert seeds == [derive_seed(3, "coverage"), derive_seed(3, "hierarchy")]


def test_after_an_evaluation_the_parts_are_in_their_mode_again(small, tmp_path, monkeypatch):
    modes = []
    terms = WholeModel.terms

    def keeping(self, *arguments):
        modes.append({name: part.training for name, part in self.lane.model.named_children()})
        return terms(self, *arguments)

    monkeypatch.setattr(WholeModel, "terms", keeping)
    train_run(small(coverage_epochs=1, epochs=2, encoder_dropout=0.1), tmp_path / "run")
    coverage = {"encoder_A": True, "encoder_B": False, "decoder_A": True, "projection": False}
    hierarchy = {"encoder_A": False, "encoder_B": True, "decoder_A": False, "projection": True}
    assert modes == [*([coverage] * (len(modes) // 3)), *([hierarchy] * (2 * len(modes) // 3))]


def test_projections_follow_the_seed_where_they_have_none_of_their_own(small, tmp_path):
    source = train_run(small(stages="coverage", coverage_epochs=1), tmp_path / "source")
    config = small(stages="hierarchy", start=str(source), start_projections="drawn", seed=11)
    state = start_model(config, find_checkpoint(source), {}).state_dict()
    drawn = create_model(config, 11).state_dict()
    assert all(torch.equal(state[name], drawn[name]) for name in state if name.startswith("projection."))
    loaded = {}
    again = start_model(config, find_checkpoint(source), loaded)
    assert list(loaded) == [find_checkpoint(source)]
    start_model(config, find_checkpoint(source), loaded)
    assert again.state_dict().keys() == state.keys() and len(loaded) == 1
    folder = train_run(TrainConfig(**{**vars(config), "epochs": 1}), tmp_path / "run")
    assert set(read_manifest(folder)["data_fingerprints"]) == {"training operations", "start"}


def test_which_parts_are_trained_is_decided_by_view_and_projection(small):
    both = small(stages="hierarchy", start="x", view="both", use_dual_projection=False)
    (stage,) = stages_of(both)
    names = set(set_trained(create_model(both, 0), both, stage))
    assert any(name.startswith("projection.proj_A.radius_net") for name in names)
    alone = small(stages="hierarchy", start="x", view="a")
    names = set(set_trained(create_model(alone, 0), alone, *stages_of(alone)))
    assert not any("proj_B" in name for name in names)
    sampled = small(stages="hierarchy", start="x", view="b", code="sample")
    names = set(set_trained(create_model(sampled, 0), sampled, *stages_of(sampled)))
    assert {name.partition(".")[0] for name in names if "fc_logvar" in name} == {"encoder_B"}


def test_the_controller_is_in_the_stages_that_weigh_by_it(small):
    def controlled(**changes):
        return [stage.controlled for stage in stages_of(small(**changes))]

    geodesic = {"loss": "geodesic", "use_controller": True}
    assert controlled(**geodesic) == [False, True] and controlled(loss="geodesic") == [False, False]
    assert controlled(use_controller=True, hierarchy_frozen=["encoder_A", "decoder_A", "controller"]) == [False, False]
    assert controlled(**geodesic, stages="joint") == [True]


def test_the_coverage_rate_may_fall_to_zero(small):
    falling = small(coverage_scheduler="cosine", coverage_epochs=200, coverage_lr=0.5)
    assert [coverage_rate(falling, k, 5) for k in (500, 1000, 1500)] == pytest.approx([0.25, 0, 0])
    warm = [coverage_rate(falling, k, 5) for k in (0, 49)]
    assert warm == pytest.approx([0.005, 0.25 * (1 + math.cos(math.pi * 49 / 1000)) / 2])


def test_an_evaluation_is_told_in_its_own_words(small):
    (stage,) = stages_of(small(stages="joint"))
    metrics = {"coverage": 0.25, "hierarchy": -0.5, "somers_d": -0.6, "positive_gaps": 1, "gaps": 3, "richness": 0.0125}
    line = (
        "  joint 2 of 6: coverage 0.25000, hierarchy -0.500000, Somers' D -0.600000, 1 of 3 gaps open, richness 0.01250"
    )
    assert console(metrics, stage, 2) == line
    assert console({"coverage": 0.25}, stage, 2) == "  joint 2 of 6: coverage 0.25000"


def test_patience_counts_from_the_first_of_equal_bests(small):
    """Equal scores are no better: waiting goes on."""
    (stage,) = stages_of(small(stages="joint", early_stopping_patience=3))
    rows = [{"stage": "joint", "coverage": 1.0, "hierarchy": -0.5, "min_level_gap": 0.0} for _ in range(4)]
    assert [module.has_ended(rows[:k], stage) for k in (1, 2, 3, 4)] == [False, False, False, True]


def test_the_first_number_that_is_not_finite_is_named():
    assert module.not_finite({"a": 1.0, "b": math.nan}, {"coverage": math.inf}) == ("loss_b", pytest.approx(math.nan, nan_ok=True))  # fmt: skip
    assert module.not_finite({"a": 1.0}, {"coverage": 1.0, "hierarchy": math.inf}) == ("hierarchy", math.inf)
    assert module.not_finite({}, {"coverage": 0.0}) is None


def test_an_optimizer_has_a_group_per_part_with_the_configurations_decay(small):
    config = small(stages="joint", weight_decay=0.25)
    (stage,) = stages_of(config)
    groups = create_optimizer(set_trained(create_model(config, 0), config, stage), config, stage).param_groups
    assert len(groups) == 4 and {group["weight_decay"] for group in groups} == {0.25}


def test_a_dry_run_of_the_training_times_both_stages_and_measures_nothing(small, tmp_path, monkeypatch, capsys):
    from ternary_vae.cli import main

    monkeypatch.setattr(WholeModel, "measure", None)
    monkeypatch.chdir(tmp_path)
    flags = [f"--{name.replace('_', '-')}={json.dumps(value)}" for name, value in vars(small()).items() if value != getattr(TrainConfig, name, object())]  # fmt: skip
    assert main(["train", "--config", "two_codes", *flags, "--device", "cpu", "--threads", "1", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "coverage: 6 epochs of" in out and ", then hierarchy: 6 epochs of" in out
    assert list(tmp_path.iterdir()) == []
