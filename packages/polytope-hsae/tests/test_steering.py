"""Steering on logits that are known, and the whole of phase 4 on a planted tree."""

import pytest
import torch
from conftest import CPU, job

from polytope_hsae.cli import STUDY
from polytope_hsae.concepts import Child, Hierarchy, Parent
from polytope_hsae.config import EvaluateConfig
from polytope_hsae.head import Head, load_head
from polytope_hsae.models import SAEConfig, build_sae
from polytope_hsae.steering import steering_effects, steering_metrics, untrained_steering
from polytope_hsae.visualization import write_tree_page
from studycore.files import read_json
from studycore.run import opened

HIERARCHY = Hierarchy(
    (
        Parent("a", "", ((), (), (0,)), (Child("a0", "", ((), (), (1,))),), ((),)),
        Parent("b", "", ((), (), (2,)), (Child("b0", "", ((), (), (3,))),), ((),)),
    ),
    {},
)
WORDS = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
HEAD = Head(WORDS)


def test_effects_are_logits_without_what_all_words_share():
    target, off, size = steering_effects(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), HEAD, HIERARCHY, torch.zeros(1, 2))
    # Words of a move by 2, those of b by 0 and 0.2; the mean of all is 1.05.
    assert float(target[0]) == pytest.approx(2 - 1.05)
    assert float(off[0]) == pytest.approx(1.05 - 0.1)
    assert float(size[0]) > 10


def test_effects_under_a_cap_are_the_capped_logits_at_contexts(tmp_path):
    Head(WORDS, 0.7).save(tmp_path / "head.safetensors")
    head = load_head(tmp_path / "head.safetensors")
    step, x_ND = torch.tensor([2.0, 0.0]), torch.tensor([[0.3, 0.1], [-0.2, 0.4]])
    target, off, _ = steering_effects(torch.stack([step, step.flip(0)]), head, HIERARCHY, x_ND)
    shift = (0.7 * torch.tanh((x_ND + step) @ WORDS.T / 0.7) - 0.7 * torch.tanh(x_ND @ WORDS.T / 0.7)).mean(0)
    shift = shift - shift.mean()
    assert float(target[0]) == pytest.approx(float(shift[:2].mean()))
    assert float(off[0]) == pytest.approx(float(shift[2:].abs().mean()))
    # A cap far above all logits is none.
    loose = steering_effects(torch.stack([step, step.flip(0)]), Head(WORDS, 1e4), HIERARCHY, x_ND)
    plain = steering_effects(torch.stack([step, step.flip(0)]), HEAD, HIERARCHY, x_ND)
    for one, other in zip(loose, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def model_of(decoder):
    model = build_sae(SAEConfig("topk", 2, 2, 1))
    with torch.no_grad():
        model.decoder.copy_(decoder)
        model.encoder.copy_(decoder)
    return model


def test_a_latent_that_points_at_its_words_succeeds_and_one_that_points_away_fails():
    x_ND = 3 * torch.eye(2)
    found, curves = steering_metrics(model_of(torch.eye(2)), torch.tensor([0, 1]), x_ND, HEAD, HIERARCHY, [1.0, 2.0])
    assert found["steering_success"] == 1
    torch.testing.assert_close(curves["target"][1], 2 * curves["target"][0])
    wrong, _ = steering_metrics(model_of(torch.eye(2)), torch.tensor([1, 0]), x_ND, HEAD, HIERARCHY, [1.0])
    assert wrong["steering_success"] == 0
    assert wrong["steering_leakage"] == 1 > found["steering_leakage"]


def test_the_reference_steers_with_steps_as_they_are():
    found = untrained_steering(torch.tensor([[2.0, 0.0], [0.0, -2.0]]), HEAD, HIERARCHY, torch.zeros(1, 2))
    # The first moves its own words by 0.95 and the others by 0.95 the other way; the second moves its own down.
    assert found == pytest.approx(
        {"steering_leakage_reference": (0.5 + 1) / 2, "steering_success_reference": 0.5}, abs=0.03
    )


def test_a_latent_that_never_fires_is_a_failure():
    found, _ = steering_metrics(model_of(torch.eye(2)), torch.tensor([0, 1]), -torch.eye(2), HEAD, HIERARCHY, [1.0])
    assert (found["steering_success"], found["steering_leakage"]) == (0, 1)


def test_phase_4_of_a_planted_tree(tmp_path, planted, small):
    needs = dict(planted)
    for seed in (1, 2):
        needs[f"teacher_s{seed}"] = job(
            "train", small(arm="teacher", seed=seed), tmp_path / f"teacher_s{seed}", planted
        )
    folder = job("evaluate", EvaluateConfig("teacher", 1, ce_size=200), tmp_path / "evaluate", needs)
    metrics = read_json(folder / "results.json")["metrics"]
    assert 0 < metrics["stability"] <= 1
    assert 0 <= metrics["steering_leakage"] <= 1
    # What phase 1's own steps do, which point at their words.
    assert metrics["steering_success_reference"] == 1
    assert metrics["steering_leakage_reference"] < 0.5
    # A planted tree has no next token, so there is no cross-entropy, rather than a 0.
    assert "ce_recovered" not in metrics
    tree = read_json(folder / "tree.json")
    assert tree[0]["fires"] >= tree[-1]["fires"] > 0
    named = [parent for parent in tree if parent["concept"]]
    assert {parent["concept"] for parent in named} & {"p0", "p1", "p2", "p3"}
    assert all(0 <= parent["purity"] <= 1 and 0 <= parent["recall"] <= 1 for parent in named)
    page = write_tree_page(tree, tmp_path / "tree.html", "teacher").read_text()
    assert f"<b>{named[0]['concept']}</b> ({100 * named[0]['purity']:.1f} % of its activation" in page
    assert f"of which it finds {100 * named[0]['recall']:.0f} %)" in page
    assert (
        "% of its activation" not in write_tree_page([{**tree[0], "concept": ""}], tmp_path / "t.html", "x").read_text()
    )


def test_runs_open_with_the_declared_study(tmp_path, planted, small):
    with opened(STUDY, "train", small(), tmp_path / "dry", CPU, dry=True, needs=planted) as run:
        assert run.needs["geometry"].exists()
