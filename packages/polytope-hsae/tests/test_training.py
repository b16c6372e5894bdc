"""Stages, exact resuming, the teacher's start, and a series of losses that a change must not move unnoticed."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import SMALL, job

import polytope_hsae.arms as arms
import polytope_hsae.training as training
import polytope_hsae.update as update
from polytope_hsae.cli import STUDY
from polytope_hsae.data import open_store
from polytope_hsae.models import SparseAutoencoder, build_sae
from polytope_hsae.report import ONE_JOB, report
from polytope_hsae.teacher import initialise, load_teacher
from studycore.configuration import to_dict, to_yaml
from studycore.errors import Stopped, UserError
from studycore.files import read_json
from studycore.metrics_log import read_rows
from studycore.record import read_record
from studycore.stopping import stop_on_signals
from studycore.streams import generator
from studycore.testing.interrupted import killed_at
from studycore.testing.runs import output_of, same

SERIES = [0.6244, 0.5371, 0.4860, 0.4907, 0.4265]  # encoders start from the duals of their steps


def train(config, folder, planted, resume=False):
    return job("train", config, folder, planted, resume)


@pytest.mark.parametrize("arm", ["teacher", "batchtopk"])
def test_a_stopped_and_resumed_run_is_bitwise_the_same(tmp_path, planted, small, arm, monkeypatch):
    config = small(arm=arm)
    whole = train(config, tmp_path / "whole", planted)
    real, count = update.count_firing, 0

    def stop_after_nine(*args):
        nonlocal count
        real(*args)
        count += 1
        if count == 9:
            with stop_on_signals() as stop:
                stop.name = "a test"

    monkeypatch.setattr(update, "count_firing", stop_after_nine)
    with pytest.raises(Stopped, match="stopped by a test"):
        train(config, tmp_path / "cut", planted)
    monkeypatch.undo()
    same(whole, train(config, tmp_path / "cut", planted, resume=True))


def test_stage_a_leaves_the_teachers_parents_and_stage_b_moves_them(tmp_path, planted, small, monkeypatch):
    """Children learn in both."""
    config = small(arm="teacher", stage_a_steps=4, stage_b_steps=1)
    parents, children = [], []
    real = update.count_firing

    def watch(model, *args):
        parents.append(model.decoder.detach().clone())
        children.append(model.child_atoms().detach().clone())
        real(model, *args)

    monkeypatch.setattr(update, "count_firing", watch)
    train(config, tmp_path / "run", planted)
    assert all(torch.equal(parents[0], other) for other in parents[:4])
    assert not torch.equal(parents[3], parents[4])
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(children))


def test_causal_orthogonality_turns_children_from_their_parents(tmp_path, planted, small):
    """The control without it ends elsewhere, and nearer to its parents; a weight of none is that control."""
    found = {}
    for name, changes in (
        ("teacher", {}),
        ("no_causal_ortho", {}),
        ("none", {"arm": "teacher", "causal_ortho_lambda": 0.0}),
    ):
        values = {"arm": name, "causal_ortho_lambda": 1.0, "stage_a_steps": 12} | changes
        folder = train(small(**values), tmp_path / name, planted)
        weights = SparseAutoencoder.from_pretrained(folder / "sae").state_dict()
        found[name] = weights, read_json(folder / "results.json")["metrics"]["causal_cosine_squared"]
    for name in ("up", "low_decoder", "decoder"):
        assert not torch.equal(found["teacher"][0][name], found["no_causal_ortho"][0][name]), name
        assert torch.equal(found["none"][0][name], found["no_causal_ortho"][0][name]), name
    assert found["teacher"][1] < 0.8 * found["no_causal_ortho"][1]


def test_a_random_start_under_the_teachers_schedule(tmp_path, planted, small, monkeypatch):
    """Its stages and its losses are the teacher's, its vectors are those of the random arm."""
    config = small(arm="random_staged")
    store = open_store(planted["geometry"], planted["activations"])
    indices = store.split(0)
    values = arms.start_values(config, store, indices)
    teacher = load_teacher(planted["geometry"], config)
    started = arms.start_model(config, values, store, indices, teacher).state_dict()
    plain = arms.start_model(small(arm="random"), values, store, indices, None).state_dict()
    assert all(torch.equal(started[name], plain[name]) for name in plain)
    folder = train(config, tmp_path / "run", planted)
    rows = read_rows(folder / "metrics.jsonl")
    assert {row["stage"] for row in rows if "loss_causal_orthogonality" in row} == {"A"}
    assert "teacher_energy_kept" not in read_json(folder / "results.json")["metrics"]


def test_a_frozen_decoder_is_frozen_to_the_end(tmp_path, planted, small):
    config = small(arm="frozen_random", stage_a_steps=2, stage_b_steps=4)
    model = SparseAutoencoder.from_pretrained(train(config, tmp_path / "run", planted) / "sae")
    start = build_sae(model.config, generator(config.seed, "weights"))
    initialise(start, load_teacher(planted["geometry"], config), config)
    for one, other in zip(start.decoders(), model.decoders(), strict=True):
        assert torch.equal(one, other)


def test_the_teachers_decoder_is_the_geometry(planted, small):
    config = small(arm="teacher", energy_threshold=1.0)
    teacher = load_teacher(planted["geometry"], config)
    model = build_sae(arms.shape_of(config, 24, 1.0), torch.Generator().manual_seed(0))
    kept = initialise(model, teacher, config)
    units = teacher.parents_PD / teacher.parents_PD.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.decoder[:4].detach(), units)
    atoms, deltas = model.child_atoms()[:4, :3].detach(), teacher.deltas_PCD
    cosines = torch.nn.functional.cosine_similarity(atoms, deltas, dim=-1)
    # Three children fit into three dimensions.
    torch.testing.assert_close(cosines, torch.ones(4, 3), rtol=1e-3, atol=1e-3)
    assert kept["teacher_energy_kept"] == pytest.approx(1, abs=1e-4)


def test_a_random_teacher_keeps_every_causal_angle(planted, small):
    one, other = (load_teacher(planted["geometry"], small(arm=arm)) for arm in ("teacher", "random_teacher"))

    def angles(teacher):
        rows = torch.cat([teacher.parents_PD, teacher.deltas_PCD.flatten(0, 1)]) @ teacher.metric_DD
        rows = rows / rows.norm(dim=1, keepdim=True)
        return rows @ rows.T

    torch.testing.assert_close(angles(one), angles(other), rtol=1e-3, atol=1e-4)
    assert float((one.parents_PD - other.parents_PD).norm()) > 0.1


def test_the_reference_reads_in_the_dual_of_the_steps(tmp_path, planted, small, monkeypatch):
    from studycore.record import read_arrays

    seen, real = [], training.sae_metrics
    monkeypatch.setattr(training, "sae_metrics", lambda *args: seen.append(args[-2]) or real(*args))
    train(small(stage_a_steps=1, stage_b_steps=5), tmp_path / "run", planted)
    arrays = {name: torch.from_numpy(values) for name, values in read_arrays(planted["geometry"]).items()}
    expected = arrays["causal_parents"] @ arrays["sqrt"] @ arrays["sqrt"]
    torch.testing.assert_close(seen[0], expected.float(), rtol=1e-4, atol=1e-5)


def test_the_causal_cosine_is_causal_in_every_hierarchical_arm(tmp_path, planted, small):
    """In the Euclidean arm too, and at random: else the column would compare two metrics."""
    from polytope_hsae.losses import causal_orthogonality
    from studycore.record import read_arrays

    root_DD = torch.from_numpy(read_arrays(planted["geometry"])["sqrt"]).float()
    for arm in ("euclidean", "random"):
        folder = train(small(arm=arm, stage_a_steps=1, stage_b_steps=5), tmp_path / arm, planted)
        model = SparseAutoencoder.from_pretrained(folder / "sae")
        found = causal_orthogonality(model.decoder[:4], model.child_atoms()[:4], root_DD) / 16
        metrics = read_json(folder / "results.json")["metrics"]
        assert metrics["causal_cosine_squared"] == pytest.approx(float(found.detach()), rel=1e-4)


def test_more_concepts_than_parents_are_refused(planted, small):
    with pytest.raises(
        UserError, match=r"hsae.m_top, hsae.m_low: 3 parents of 4 children cannot start from 4 concepts"
    ):
        load_teacher(planted["geometry"], small(arm="teacher", m_top=3))


def test_flat_arms_have_as_many_latents_and_as_many_active(small):
    ours = arms.shape_of(small(arm="random"), 24, 1.0)
    for arm in ("topk", "batchtopk", "matryoshka"):
        flat = arms.shape_of(small(arm=arm), 24, 1.0)
        assert flat.features == ours.features
        assert flat.topk_parent == ours.topk_parent * (1 + ours.topk_child)


def test_arms_train_equally_long(small):
    for arm in ("random", "teacher", "topk", "random_staged", "frozen_random"):
        assert sum(stage.steps for stage in arms.stages(small(arm=arm))) == 20


def test_schedules(small):
    config = small(lr_warmup_steps=4, lr_schedule="cosine")
    assert update.schedule(0, config) == pytest.approx(0.25)
    assert update.schedule(20, config) == pytest.approx(0.1)


def test_losses_of_the_first_steps(tmp_path, planted, small):
    """A change that moves these says why and commits new ones."""
    folder = train(small(arm="teacher"), tmp_path / "run", planted)
    losses = [row["loss"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 20
    assert losses[::4] == pytest.approx(SERIES, abs=2e-3)
    metrics = read_json(folder / "results.json")["metrics"]
    assert {"1-EV", "purity", "leakage", "split", "absorption", "inclusion", "inclusion_null"} <= set(metrics)
    assert json.loads((folder / "claims.json").read_text()) == []


def test_an_odd_batch_is_refused(tmp_path, planted, small):
    with pytest.raises(UserError, match="batch_size_acts: 5000 is more than the"):
        train(small(batch_size_acts=5000), tmp_path / "run", planted)


@pytest.mark.parametrize("arm", ["teacher", "matryoshka"])
def test_a_training_that_was_killed_again_and_again_is_the_same(tmp_path, planted, small, arm):
    """In the first steps, before any checkpoint; after a save; between checkpoints, in the other stage; while it measures."""
    import studycore.run

    config = small(arm=arm)
    whole, cut = train(config, tmp_path / "whole", planted), tmp_path / "cut"
    places = [
        (update, "count_firing", 3),
        (studycore.run, "save_checkpoint", 1),
        (update, "count_firing", 9),
        (training, "sae_metrics", 1),
    ]
    for place in places:
        assert killed_at(*place, lambda: train(config, cut, planted, resume=cut.exists())), place
    same(whole, train(config, cut, planted, resume=True))


def test_other_jobs_that_were_killed_are_the_same(tmp_path, planted, small, monkeypatch):
    """Geometry, the planted activations and an evaluation: killed before their results, made again."""
    import polytope_hsae.activations as activations
    import polytope_hsae.extraction as extraction
    import polytope_hsae.steering as steering
    from polytope_hsae.config import ActivationConfig, EvaluateConfig, GeometryConfig

    monkeypatch.chdir(tmp_path)
    trained = train(small(), tmp_path / "random_s1", planted)
    jobs = {
        "geometry": (GeometryConfig(**SMALL, n_shuffles=19, contexts=8), {}, (extraction, "validate", 1)),
        "activations": (ActivationConfig(**SMALL, token_budget=3000), {"geometry": planted["geometry"]}, (activations, "write_json", 1)),
        "evaluate": (EvaluateConfig("random", 1, ce_size=200), {**planted, "random_s1": trained}, (steering, "target_probability", 1)),
    }  # fmt: skip
    for verb, (config, needs, place) in jobs.items():
        cut = tmp_path / f"{verb}_cut"
        whole = job(verb, config, tmp_path / verb, needs)
        assert killed_at(*place, lambda: job(verb, config, cut, needs)), verb  # noqa: B023
        assert read_json(cut / "manifest.json")["state"] == "running"
        same(whole, job(verb, config, cut, needs, resume=True))


def test_two_processes_equal_one_at_equal_batch(tmp_path, planted, small):
    """With dead latents, whose loss is divided by a mean over the whole batch, and both stages."""
    config = small(arm="teacher", dead_after_tokens=300, batch_size_acts=64)
    train(config, tmp_path / "one", planted)
    (tmp_path / "c.yaml").write_text(to_yaml(to_dict(config)))
    folders = [f"--{name}={planted[name]}" for name in ("geometry", "activations")]
    flags = ["--config", tmp_path / "c.yaml", *folders, "--device", "cpu", "--threads", "1", "--num-processes", "2"]
    output_of("-m", "polytope_hsae", "train", *flags, "--output-dir", tmp_path / "two")
    assert read_json(tmp_path / "two" / "manifest.json")["devices"]["world_size"] == 2
    losses = [
        [row["loss"] for row in read_rows(tmp_path / n / "metrics.jsonl") if "loss" in row] for n in ("one", "two")
    ]
    # Rows are of the first process, whose half of the batch has a loss of its own; weights are of both.
    assert len(losses[0]) == len(losses[1]) == 20
    one, two = (SparseAutoencoder.from_pretrained(tmp_path / name / "sae").state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)
    evs = [
        [row["explained_variance"] for row in read_rows(tmp_path / n / "metrics.jsonl") if "1-EV" in row]
        for n in ("one", "two")
    ]
    assert np.allclose(*evs, rtol=1e-4)


def test_a_job_by_itself_needs_the_folders_of_others(tmp_path, planted, small):
    with pytest.raises(UserError, match=r"geometry: null; .* name its folder: --geometry RUN"):
        job("train", small(), tmp_path / "run")
    with pytest.raises(UserError, match=r"activations: null; .* --activations RUN"):
        job("train", small(), tmp_path / "run", {"geometry": planted["geometry"]})


@pytest.mark.parametrize("arm", ["teacher", "topk", "matryoshka"])
@pytest.mark.parametrize("changes", [{"m_top": 10**11}, {"m_low": 10**11}], ids=["m_top", "m_low"])
def test_an_autoencoder_that_cannot_fit_is_refused_with_its_size(planted, small, tmp_path, arm, changes):
    config = small(arm=arm, **changes)
    for act in (
        lambda: job("train", config, tmp_path / "run", planted),
        lambda: arms.check_room(config, 64, "cpu"),
    ):
        with pytest.raises(UserError, match=rf"^hsae.m_top, hsae.m_low: .*{10**11}.* a batch take [\d,]+ GiB"):
            act()
    assert not (tmp_path / "run").exists()
    arms.check_room(small(arm=arm), 64, "cpu")


def test_the_report_of_one_job_answers_with_its_own_figures(tmp_path, planted, small):
    """Each sentence has what its verb measures, and a training has its curve."""
    folder = train(small(), tmp_path / "run", planted)
    reports = {}
    for verb, place in (*planted.items(), ("train", folder)):
        record = read_record(STUDY, place)
        reports[verb] = report(record)
        assert set(ONE_JOB[verb]) <= set(record.metrics), verb
    found = read_json(folder / "results.json")["metrics"]
    assert f"explains {found['explained_variance']:.1%} of the variance" in reports["train"].answer
    assert f"activation {found['purity']:.1%} is on its own concept" in reports["train"].answer
    assert f"latent that is always on: {found['base_rate']:.1%})" in reports["train"].answer
    assert len(reports["train"].pictures) == 1
    of_geometry = read_json(planted["geometry"] / "results.json")["metrics"]
    assert f"vector with {of_geometry['held_out_projection_median']:.2f} of its length" in reports["geometry"].answer
    assert len(reports["geometry"].pictures) == 3
    assert reports["activations"].answer == "3,000 activations are kept, 3,000 of them with a concept."
