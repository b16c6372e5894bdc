"""Which value feeds what: terms of the loss, stages, counters, metrics, steering, tests of the geometry, tables."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import job
from test_metrics import labels_and_codes
from test_steering import HEAD, HIERARCHY, model_of

import polytope_hsae.arms as arms
import polytope_hsae.metrics as metrics
import polytope_hsae.training as training
import polytope_hsae.update as update
import polytope_hsae.validation as validation
import polytope_hsae.visualization as visualization
from polytope_hsae.concepts import Child, Hierarchy, Parent
from polytope_hsae.config import StudyConfig
from polytope_hsae.data import CHOOSE, TEST, Store, open_store
from polytope_hsae.geometry import causal_geometry, cosine
from polytope_hsae.head import Head
from polytope_hsae.losses import Weights, causal_orthogonality, off_diagonal_biorthogonality, total_loss
from polytope_hsae.models import Codes, Output, SAEConfig, SparseAutoencoder, build_sae, dense_codes
from polytope_hsae.plan import phase4
from polytope_hsae.report import _levels, arm_pictures, arm_table, geometry_table, labelled_table, notes
from polytope_hsae.steering import steering_effects, steering_metrics, strongest, target_probability, tree
from polytope_hsae.teacher import initialise, load_teacher
from polytope_hsae.validation import (
    Statistics,
    Validation,
    Vectors,
    _compare,
    _pairing,
    _ratio_invariance,
    clustered_interval,
    p_value,
    statistics,
)
from studycore.files import read_json, sha256, write_json
from studycore.record import read_arrays
from studycore.statistics import median_interval

X_BD = torch.tensor([[1.0, 2.0], [0.0, 0.0]])


# ---------------------------------------------------------------------------------------------------------- the loss
def test_the_parts_of_the_loss_by_hand(small):
    config = small(l1_parent=0.5, l1_child=0.25, biorth_lambda=2.0, aux_lambda=3.0)
    model = build_sae(SAEConfig("hierarchical", 2, 3, 1, 1, 2), torch.Generator().manual_seed(0))
    none = torch.zeros(2, 2, dtype=torch.long)
    codes = Codes(none, torch.tensor([[2.0, 1.0], [0.0, 1.0]]), none, torch.tensor([[4.0, 2.0], [0.0, 3.0]]))
    x_hat = torch.zeros(2, 2, requires_grad=True)
    output = Output(x_hat, codes, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), (), (torch.tensor([[1.0, 1.0], [0.0, 0.0]]),))
    metric, chosen = torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([0, 2])
    loss, parts = total_loss(model, X_BD, output, config, Weights(0.1, 0.4, 7.0), chosen, metric, 2)
    assert {name: float(parts[name].detach()) for name in ("reconstruction", "top_level", "l1_parent", "l1_child", "aux")} == {
        "reconstruction": 2.5,  # (1 + 4) / 2
        "top_level": pytest.approx(0.1 * 2),
        "l1_parent": pytest.approx(0.4 * 0.5 * 2),
        "l1_child": pytest.approx(0.4 * 0.25 * 4.5),
        "aux": pytest.approx(3 * 0.5 / 2.5),  # what the dead latents leave of the error, over the error
    }  # fmt: skip
    assert not parts["aux"].requires_grad, "the error is a target and learns nothing from the dead latents"
    torch.testing.assert_close(
        parts["biorthogonality"], 2 * off_diagonal_biorthogonality(model.encoder, model.decoder, chosen)
    )
    taught = causal_orthogonality(model.decoder[:2], model.child_atoms()[:2], metric)
    torch.testing.assert_close(parts["causal_orthogonality"], 7 * taught)
    torch.testing.assert_close(loss, sum(parts.values()))


def test_children_of_unlike_lengths_count_alike():
    """Cosines 3/5 and 1 of two children, one five times as long as the other."""
    found = causal_orthogonality(torch.tensor([[1.0, 0.0]]), torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.eye(2))
    assert float(found) == pytest.approx(9 / 25 + 1)


def test_matryoshka_is_the_mean_over_all_dictionaries(small):
    config = SAEConfig("matryoshka", 2, 4, 1, inner_widths=(1, 2))
    output = Output(torch.zeros(2, 2), Codes(torch.zeros(2, 1), torch.zeros(2, 1)), None, (X_BD, torch.tensor([[1.0, 0.0], [0.0, 0.0]])))  # fmt: skip
    loss, _ = total_loss(build_sae(config), X_BD, output, small(), Weights(1, 1, 0), torch.arange(2), None, 0)
    assert float(loss) == pytest.approx((2.5 + 0 + 2) / 3)


# --------------------------------------------------------------------------------------------------------- the model
def test_dead_latents_of_each_level_alone_rebuild_the_error():
    model = build_sae(SAEConfig("hierarchical", 7, 10, 3, 2, 4), torch.Generator().manual_seed(0))
    x_BD = torch.randn(200, 7, generator=torch.Generator().manual_seed(1))
    dead = torch.arange(10) < 4, torch.arange(40) % 4 == 1
    output = model.train_forward(x_BD, dead)
    (by_parent,) = torch.autograd.grad(output.aux[0].square().sum(), [model.decoder], retain_graph=True)
    assert (by_parent[:4].abs().sum(1) > 0).all()
    assert (by_parent[4:] == 0).all()
    (by_child,) = torch.autograd.grad(output.aux[1].square().sum(), [model.low_decoder])
    assert (by_child.flatten(0, 1)[~dead[1]] == 0).all()
    alone = torch.zeros(40, dtype=torch.bool)
    alone[13] = True  # of parent 3 alone: other parents have no dead child to rebuild anything with
    (by_child,) = torch.autograd.grad(model.train_forward(x_BD, (dead[0] & False, alone)).aux[0].square().sum(), [model.low_decoder])  # fmt: skip
    assert by_child.flatten(0, 1).abs().sum(1).nonzero().flatten().tolist() == [13]


def test_a_batchs_threshold_is_a_running_mean_that_the_use_applies():
    model = build_sae(SAEConfig("batchtopk", 7, 20, 2), torch.Generator().manual_seed(0)).train()
    never, smallest = (torch.zeros(20, dtype=torch.bool),), []
    for seed in (1, 2):
        x_BD = (seed**2) * torch.randn(30, 7, generator=torch.Generator().manual_seed(seed))
        value = model.train_forward(x_BD, never).codes.value.detach()
        assert int((value > 0).sum()) == 60
        smallest.append(float(value[value > 0].min()))
    assert float(model.threshold) == pytest.approx(smallest[0] + 0.01 * (smallest[1] - smallest[0]))
    kept = model.eval().encode(x_BD).value
    assert float(kept[kept > 0].min()) >= float(model.threshold)
    model.threshold.fill_(1e9)
    assert not model.encode(x_BD).value.any()
    before = float(model.threshold)
    model.train_forward(x_BD, never)
    assert float(model.threshold) == before


def test_inner_dictionaries_are_of_the_first_latents():
    model = build_sae(SAEConfig("matryoshka", 7, 20, 3, inner_widths=(5, 12)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.bias += 0.1
    x_BD = torch.randn(30, 7, generator=torch.Generator().manual_seed(1))
    output = model.train_forward(x_BD, (torch.zeros(20, dtype=torch.bool),))
    dense_BF = torch.zeros(30, 20).scatter(1, output.codes.index, output.codes.value.detach())
    for width, prefix in zip((5, 12), output.prefixes, strict=True):
        torch.testing.assert_close(prefix, model.bias + dense_BF[:, :width] @ model.decoder[:width])


def test_an_export_says_what_its_codes_depend_on(tmp_path):
    config = SAEConfig("hierarchical", 7, 10, 3, subspace_dim=2, m_low=4, topk_child=1, input_scale=0.5)
    model = build_sae(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.bias += 0.3
        model.low_bias += 0.2
    flat = model.to_flat()
    flat.save(tmp_path)
    said = json.loads((tmp_path / "cfg.json").read_text())
    assert {name: said[name] for name in ("m_top", "topk_parent", "m_low", "topk_child", "input_scale", "d_sae")} == {
        "m_top": 10, "topk_parent": 3, "m_low": 4, "topk_child": 1, "input_scale": 0.5, "d_sae": 50,
    }  # fmt: skip
    x_BD = torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
    codes = flat.encode(x_BD)[:, 10:]
    read = (x_BD @ flat.W_enc + flat.b_enc)[:, 10:] / 0.5
    torch.testing.assert_close(codes[codes > 0], read[codes > 0], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- training
def test_stages_and_shapes_of_the_arms(small):
    given = {"stage_a_lr_mult": 0.3, "stage_b_lr_mult": 0.7, "stage_b_decoder_lr_mult": 0.2, "causal_ortho_lambda": 0.4,
             "stage_a_beta": 0.05, "stage_b_beta": 0.06}  # fmt: skip
    first, second = arms.stages(small(arm="teacher", **given))
    assert first == arms.Stage("A", 6, 0.3, 1.0, 0.05, "parents", 0.4, 0)
    assert second == arms.Stage("B", 14, 0.7, 0.2, 0.06, "nothing", 0.0, 6)
    assert [stage.causal_ortho for stage in arms.stages(small(arm="no_causal_ortho", **given))] == [0, 0]
    frozen = arms.stages(small(arm="frozen_random"))
    assert [(stage.frozen, stage.causal_ortho) for stage in frozen] == [("all", 0), ("all", 0)]
    assert [stage.frozen for stage in arms.stages(small(arm="teacher", stage_a_freeze_decoder=False))] == [
        "nothing"
    ] * 2
    assert arms.stages(small(arm="random_staged", **given)) == (first, second), "its schedule is the teacher's"
    assert arms.stages(small(arm="random", **given)) == (arms.Stage("B", 20, 0.7, 1.0, 0.06, "nothing", 0.0, 0),)
    shapes = {arm: arms.shape_of(small(arm=arm), 24, 0.5) for arm in ("top2", "matryoshka", "topk", "random")}
    assert (shapes["top2"].topk_child, shapes["random"].topk_child) == (2, 1)
    assert shapes["matryoshka"].inner_widths == (8, 24)
    assert shapes["topk"].inner_widths == ()
    assert {shape.input_scale for shape in shapes.values()} == {0.5}


def test_rates_and_decay_are_those_of_each_kind_of_parameter(small):
    config = small(arm="teacher", weight_decay=0.1, stage_b_lr_mult=0.5, stage_b_decoder_lr_mult=0.25)
    model = build_sae(arms.shape_of(config, 24, 1.0))
    groups = update.create_optimizer(model, config, arms.stages(config)[1]).param_groups
    found = {id(q): (g["lr_factor"], g["weight_decay"]) for g in groups for q in g["params"]}
    rates = {name: found[id(q)] for name, q in model.named_parameters()}
    assert rates == {
        "decoder": (0.125, 0), "low_decoder": (0.125, 0), "up": (0.125, 0), "down": (0.125, 0), "encoder": (0.5, 0.1),
        "low_encoder": (0.5, 0.1), "low_bias": (0.5, 0.1), "encoder_bias": (0.5, 0), "bias": (0.5, 0),
    }  # fmt: skip


def test_a_start_is_scaled_to_unit_spread_and_begins_at_the_mean(planted, small):
    store = open_store(planted["geometry"], planted["activations"])
    indices = store.split(0)
    x_ND = store.rows(indices)
    values = arms.start_values(small(), store, indices)
    model = arms.start_model(small(), values, store, indices, None)
    scaled = x_ND * values["input_scale"]
    assert float((scaled - scaled.mean(0)).square().sum(1).mean()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(model.bias.detach(), scaled.mean(0), rtol=1e-4, atol=1e-5)


def test_what_a_step_is_a_function_of(tmp_path, planted, small, monkeypatch):
    """Batches, chosen latents and sparsity go by the step of the whole run, through both stages."""
    drawn, sizes, given, projected = [], [], [], []
    streams, batches, weights, project = (
        update.generator,
        training.batch_indices,
        update.Weights,
        SparseAutoencoder.project_gradients,
    )
    monkeypatch.setattr(update, "generator", lambda *name: drawn.append(name) or streams(*name))
    monkeypatch.setattr(training, "batch_indices", lambda *a: sizes.append(a[1:]) or batches(*a))
    monkeypatch.setattr(update, "Weights", lambda *a: given.append(a) or weights(*a))
    monkeypatch.setattr(SparseAutoencoder, "project_gradients", lambda self: projected.append(1) or project(self))
    config = small(arm="teacher", l1_warmup_steps=8, dead_after_tokens=130)
    folder = job("train", config, tmp_path / "run", planted)
    assert drawn == [(1, "biorthogonality", step) for step in range(20)]
    assert sizes == [(128, 1, step) for step in range(20)]
    beta, ortho = config.top_level_beta, config.causal_ortho_lambda
    assert given == [(beta, min(1, (s + 1) / 8), ortho if s < 6 else 0) for s in range(20)]
    assert len(projected) == 20
    model = SparseAutoencoder.from_pretrained(folder / "sae")
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(model.low_decoder.norm(dim=-1), torch.ones(8, 4))
    dead = [float((counter > 130).double().mean()) for counter in model.counters()]
    assert read_json(folder / "results.json")["metrics"]["dead_parents"] == dead[0] != dead[1]


def test_counters_are_tokens_since_a_latent_fired():
    model = build_sae(SAEConfig("hierarchical", 2, 3, 1, 1, 2))
    codes = Codes(torch.tensor([[0], [1]]), torch.tensor([[1.0], [0.0]]), torch.tensor([[1], [2]]), torch.tensor([[0.5], [0.0]]))  # fmt: skip
    for _ in range(2):
        update.count_firing(model, codes, 2, SimpleNamespace(num_processes=1))
    assert model.tokens_since_fired.tolist() == [0, 4, 4]
    assert model.children_since_fired.tolist() == [4, 0, 4, 4, 4, 4]


def readers_of(model, parents, children):
    """([P, D], [P, C, D]) what the input meets on its way to a parent's and a child's code."""
    return model.encoder[:parents].detach(), (model.low_encoder @ model.down)[:parents, :children].detach()


@pytest.mark.parametrize("arm", ["teacher", "random_teacher", "no_causal_ortho", "euclidean", "tied"])
def test_each_arm_reads_with_the_dual_of_its_own_metric(planted, small, arm):
    """By hand, child by child: x . S d / (d . S d), with S the unembedding's covariance, or the identity."""
    config = small(arm=arm)
    model = build_sae(arms.shape_of(config, 24, 1.0), torch.Generator().manual_seed(0))
    initialise(model, load_teacher(planted["geometry"], config), config)
    root_DD = torch.from_numpy(read_arrays(planted["geometry"])["sqrt"])
    square_DD = torch.eye(24) if arm in ("euclidean", "tied") else (root_DD @ root_DD).float()
    steps = model.decoder[:4].detach(), model.child_atoms()[:4, :3].detach()
    for read, step in zip(readers_of(model, 4, 3), steps, strict=True):
        covector = step @ square_DD
        expected = covector / (covector * step).sum(-1, keepdim=True)
        torch.testing.assert_close(read, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close((read * step).sum(-1), torch.ones(step.shape[:-1]), rtol=1e-4, atol=1e-4)
    if arm in ("euclidean", "tied"):
        torch.testing.assert_close(model.encoder[:4], model.decoder[:4], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.down[:4], model.up[:4], rtol=1e-5, atol=1e-5)
    else:
        tied = torch.nn.functional.cosine_similarity(model.encoder[:4].detach(), model.decoder[:4].detach())
        assert float(tied.max()) < 0.99


def test_a_parents_reading_is_blind_to_its_children_where_they_are_orthogonal_to_it(planted, small):
    """As the causal metric has the planted tree; an encoder tied to the decoder reads them as the parent."""
    heard = {}
    for arm in ("teacher", "tied"):
        config = small(arm=arm)
        model = build_sae(arms.shape_of(config, 24, 1.0), torch.Generator().manual_seed(0))
        teacher = load_teacher(planted["geometry"], config)
        initialise(model, teacher, config)
        units = teacher.deltas_PCD / teacher.deltas_PCD.norm(dim=-1, keepdim=True)
        heard[arm] = float((units * model.encoder[:4, None].detach()).sum(-1).square().mean().sqrt())
    assert heard["teacher"] < 0.6 * heard["tied"], heard


def test_a_rotation_is_of_the_seed_and_the_first_direction_is_kept(planted, small):
    config = small(arm="teacher", energy_threshold=0.01, projectors_init="svd_from_teacher")
    model = build_sae(arms.shape_of(config, 24, 1.0), torch.Generator().manual_seed(0))
    teacher = load_teacher(planted["geometry"], config)
    kept = initialise(model, teacher, config)["teacher_energy_kept"]
    # However low the threshold, the first direction is the teacher's: it has the largest share of the deltas' energy.
    least = []
    for deltas in teacher.deltas_PCD:
        units = deltas / deltas.norm(dim=1, keepdim=True)
        values = torch.linalg.svdvals(units).square()
        least.append(float(values[0] / values.sum()))
    assert kept >= sum(least) / len(least) - 1e-4
    turned = [load_teacher(planted["geometry"], small(arm="random_teacher", seed=s)).parents_PD for s in (1, 1, 2)]
    assert torch.equal(turned[0], turned[1])
    assert not torch.allclose(turned[0], turned[2])


# ----------------------------------------------------------------------------------------------------------- metrics
def test_the_recovered_share_is_of_what_the_mean_loses():
    draw = torch.Generator().manual_seed(0)
    x_ND, head = torch.randn(50, 6, generator=draw), Head(torch.randn(20, 6, generator=draw))
    following = (x_ND @ head.unembedding_VD.T).argmax(1)
    found = metrics.ce_recovered(lambda x: 0.5 * x, x_ND, x_ND.mean(0), head, following)

    def ce(x):
        return float(torch.nn.functional.cross_entropy(x @ head.unembedding_VD.T, following))

    clean, half, gone = ce(x_ND), ce(0.5 * x_ND), ce(x_ND.mean(0).expand_as(x_ND))
    assert found["ce_recovered"] == pytest.approx((gone - half) / (gone - clean), rel=1e-4)
    assert (found["ce_clean"], found["ce_reconstructed"], found["ce_ablated"]) == pytest.approx((clean, half, gone))
    assert metrics.cross_entropy(x_ND.repeat(9, 1), head, following.repeat(9)) == pytest.approx(clean)


def test_labels_of_their_own_decide_what_leaks_and_what_is_pure():
    labels, codes = labels_and_codes()
    nothing, silent = torch.full((30, 2), -1), torch.zeros(30, 6)
    silent[:, 0] = 2.0  # fires where no concept is on: that is no leakage, but no purity either
    labels, codes = torch.cat([labels, nothing]), torch.cat([codes, silent])
    found = metrics.concept_metrics(codes, labels, metrics.match(codes, labels, 2, 2))
    assert found["leakage"] == 0
    own = float(codes[labels[:, 0] >= 0, 0].sum())
    assert found["purity"] == pytest.approx((own / (own + 60) + 1) / 2)
    mean = own / 30
    assert found["purity_original"] == pytest.approx((mean / (60 / 60 + 1e-8) + mean / 1e-8) / 2, rel=1e-3)


def test_absorption_counts_a_silent_parent_only_where_the_child_fires():
    labels, codes = labels_and_codes()
    matching = metrics.match(codes, labels, 2, 2)
    on = labels[:, 0] == 1
    codes[on, 0] = 0
    codes[on.nonzero().flatten()[:5], 3] = 0
    share = 1 - 5 / int(on.sum())
    assert metrics.concept_metrics(codes, labels, matching)["absorption"] == pytest.approx(share / 4)


def test_a_second_latent_splits_a_concept_only_where_it_adds_enough():
    labels, codes = labels_and_codes(1200)
    matching = metrics.match(codes, labels, 2, 2)
    first = (labels[:, 0] >= 0).nonzero().flatten()
    codes[first[:12], 0] = 0  # 2 % of its activations: F1 0.99 without the second latent
    codes = torch.cat([codes, torch.zeros(1200, 1)], 1)
    codes[first[:12], 6] = 1
    second = metrics.Matching(matching.parent_P, torch.tensor([6, 1]), matching.child_PC)
    assert metrics.concept_metrics(codes, labels, second)["split"] == 0
    codes[first[:120], 0], codes[first[:120], 6] = 0, 1
    assert metrics.concept_metrics(codes, labels, second)["split"] == 0.5


def test_matches_are_other_latents_and_none_for_a_child_that_never_comes():
    labels, codes = labels_and_codes()
    codes[:, 0] = torch.where(labels[:, 0] == 1, 5.0, codes[:, 0])  # the parent's latent tells its own children apart
    matching = metrics.match(codes, labels, 6, 3)
    assert matching.parent_P[1] == 1
    assert (matching.second_P != matching.parent_P).all()
    assert (matching.child_PC != matching.parent_P[:, None]).all()
    assert matching.child_PC[:, 2].tolist() == [-1, -1]


def fires(*shares, n=400):
    """Codes of latents that fire on the first so many of n."""
    return torch.stack([(torch.arange(n) < share * n).float() for share in shares], 1)


def test_pairs_of_each_kind_of_model():
    def of(kind, features, **more):
        values = {"kind": kind, "features": features, "m_top": features, "m_low": 2, "inner_widths": ()} | more
        return SimpleNamespace(config=SimpleNamespace(**values))

    # A parent is one that fires more often; latent 3 is too rare to count.
    codes = fires(0.5, 0.9, 0.1, 0.005)
    assert metrics.learned_pairs(of("topk", 4), codes).tolist() == [[1, 0], [0, 2]]
    # Matryoshka: of the innermost dictionary for those outside it, however often they fire.
    codes = fires(0.2, 0.1, 0.6, 0.05)
    assert metrics.learned_pairs(of("matryoshka", 4, inner_widths=(2,)), codes).tolist() == [[0, 2], [0, 3]]
    # The architecture's own: children 2 and 3 of parent 0, 4 and 5 of parent 1, which never fires.
    codes = fires(0.5, 0.0, 0.3, 0.2, 0.1, 0.1)
    assert metrics.learned_pairs(of("hierarchical", 6, m_top=2), codes).tolist() == [[0, 2], [0, 3]]


def test_yardsticks_where_child_and_parent_fire_apart():
    """40 inputs: the parent fires on the first 20, child 1 on 10 to 29, child 2 on 0 to 4."""
    n = torch.arange(40)
    codes = torch.stack(
        [(n < 20) * (1 + 0.1 * (n % 3)), ((n >= 10) & (n < 30)) * (1 + 0.2 * (n % 4)), (n < 5) * 1.0], 1
    )
    bias = torch.tensor([0.5, -1.0, 0.25])
    x_ND, decoder = codes @ torch.eye(3) + bias, torch.eye(3)
    found = metrics.hierarchy_metrics(x_ND, codes, decoder, bias, torch.tensor([[0, 1], [0, 2]]))
    assert found["inclusion"] == pytest.approx((10 / 20 + 1) / 2)
    assert found["hard_absorption"] == pytest.approx(0.25)
    assert found["coverage"] == pytest.approx(15 / 20)
    assert found["distinct_siblings"] == 1
    assert found["reconstruction_gain"] == pytest.approx(1)
    a, c = codes[10:20, 0].double().numpy(), codes[10:20, 1].double().numpy()
    assert found["soft_absorption"] == pytest.approx(-np.polyfit(c, a, 1)[0] * c.mean() / a.mean(), rel=1e-4)
    codes[:8, 1] = 1.0  # now the two children meet on 5 of 28
    found = metrics.hierarchy_metrics(codes + bias, codes, decoder, bias, torch.tensor([[0, 1], [0, 2]]))
    assert found["distinct_siblings"] == pytest.approx(1 - 5 / 28)


def test_the_nulls_parents_have_the_rate_of_the_parent():
    shares = [0.5, 0.5, 0.49, 0.51, 0.48, 0.52, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05]
    codes = fires(*shares)
    drawn = [metrics.matched_pairs(codes, torch.tensor([[0, 11]]), 11, seed)[0].tolist() for seed in range(20)]
    assert {parent for parent, _ in drawn} <= {1, 2, 3, 4, 5}
    assert len({parent for parent, _ in drawn}) > 1, "another seed draws another parent"


def test_a_step_of_exactly_the_share_has_converged_and_stability_is_of_the_first_decoder():
    rows = [{"step": s, "explained_variance": v} for s, v in ((0, 0.5), (10, 0.99), (20, 1.0))]
    assert metrics.steps_to_convergence(rows) == 10
    assert metrics.stability(torch.eye(2), torch.eye(2)[:1]) == 0.5
    assert metrics.stability(torch.eye(2)[:1], torch.eye(2)) == 1


def test_what_metrics_are_measured_on(planted, monkeypatch):
    """Matched on one split, measured on the other, on words that took no part in estimating, on scaled inputs."""
    store = open_store(planted["geometry"], planted["activations"])
    model = build_sae(SAEConfig("hierarchical", 24, 8, 2, 3, 4, 1, 0.5), torch.Generator().manual_seed(0)).eval()
    monkeypatch.setattr(store, "held_out", lambda indices: torch.arange(len(indices)) % 2 == 0, raising=False)
    seen = {}
    for name in ("match", "concept_metrics", "hierarchy_metrics", "direction_reading", "shuffled_reading"):
        real = getattr(metrics, name)
        monkeypatch.setattr(metrics, name, lambda *a, real=real, name=name: seen.setdefault(name, a) and real(*a))
    directions = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    found, _ = metrics.sae_metrics(model, store, 450, 1, directions)
    choose, test = (store.sample(which, 450) for which in (CHOOSE, TEST))
    codes = dense_codes(model, store.rows(test))
    assert torch.equal(seen["match"][0], dense_codes(model, store.rows(choose)))
    assert torch.equal(seen["match"][1], store.labels(choose))
    assert torch.equal(seen["concept_metrics"][0], codes[::2])
    assert torch.equal(seen["concept_metrics"][1], store.labels(test)[::2])
    assert torch.equal(seen["hierarchy_metrics"][0], store.rows(test) * 0.5)
    data, given = seen["direction_reading"]
    assert torch.equal(given, directions)
    assert torch.equal(data.choose_ND, store.rows(choose))
    assert torch.equal(data.test_ND, store.rows(test)[::2])
    assert torch.equal(data.test_on_NP, store.labels(test)[::2] >= 0)
    assert torch.equal(seen["shuffled_reading"][0][2], codes[::2, :8])
    assert not [name for name in found if "prompts" in name], "a planted tree has none"
    parents, every = (codes[:, :8] > 0).sum(1).double().mean(), (codes > 0).sum(1).double().mean()
    assert (found["parents_active"], found["latents_active"]) == pytest.approx((float(parents), float(every)))
    assert found["parents_used"] == float((codes[:, :8] > 0).any(0).double().mean())


# ---------------------------------------------------------------------------------------------------------- steering
def test_a_step_is_the_mean_code_where_the_latent_fires_in_units_of_the_activations():
    x_ND = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [0.0, 3.0]])
    found, curves = steering_metrics(model_of(torch.eye(2)), torch.tensor([0, 1]), x_ND, HEAD, HIERARCHY, [1.0, 2.0])
    target, off, _ = steering_effects(3 * torch.eye(2), HEAD, HIERARCHY, x_ND)
    assert found["steering_target_logit"] == pytest.approx(float(target.mean()))
    assert found["steering_off_target_logit"] == pytest.approx(float(off.mean()))
    torch.testing.assert_close(curves["target"], torch.stack([target, 2 * target]))
    scaled = build_sae(SAEConfig("topk", 2, 2, 1, input_scale=0.5))
    scaled.load_state_dict(model_of(torch.eye(2)).state_dict())
    other, _ = steering_metrics(scaled, torch.tensor([0, 1]), x_ND, HEAD, HIERARCHY, [1.0])
    assert other == pytest.approx(found)
    log_p = (x_ND @ HEAD.unembedding_VD.T).log_softmax(1)
    expected = []
    for strength in (1.0, 2.0):
        moved = [((x_ND + strength * 3 * torch.eye(2)[p]) @ HEAD.unembedding_VD.T).log_softmax(1) for p in (0, 1)]
        words = ([0, 1], [2, 3])
        change = [(moved[p][:, words[p]].logsumexp(1) - log_p[:, words[p]].logsumexp(1)).mean() for p in (0, 1)]
        expected.append(float(sum(change)) / 2)
    for model in (model_of(torch.eye(2)), scaled):
        found = target_probability(model, torch.tensor([0, 1]), x_ND, HEAD, HIERARCHY, [1.0, 2.0])
        assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_off_target_shifts_do_not_cancel_and_a_small_effect_is_no_success():
    words = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.9, 0.0], [-1.1, 0.0]])
    step = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    target, off, size = steering_effects(step, Head(words), HIERARCHY, torch.zeros(1, 2))
    assert (float(target[0]), float(off[0])) == pytest.approx((0.1, 1.0))
    assert float(size[0]) == pytest.approx((0.1 + 0.1) / math.sqrt(1 / 2), rel=1e-4)
    found, _ = steering_metrics(
        model_of(torch.eye(2)), torch.tensor([0, 0]), torch.eye(2), Head(words), HIERARCHY, [1.0]
    )
    assert found["steering_success"] == 0


def test_the_tree_has_each_parents_own_children(planted, small):
    store = open_store(planted["geometry"], planted["activations"])
    model = build_sae(SAEConfig("hierarchical", 24, 8, 2, 3, 4), torch.Generator().manual_seed(0)).eval()
    found = tree(model, store, torch.tensor([2, 5, 1, 0]), SimpleNamespace(tree_contexts=2))
    count = (dense_codes(model, store.rows(store.sample(TEST, 4096))) > 0).sum(0)
    for parent in found:
        j = parent["latent"]
        assert parent["fires"] == int(count[j])
        own = {c["latent"]: c["fires"] for c in parent["children"]}
        assert own == {i: int(count[8 + 4 * j + i]) for i in range(4) if count[8 + 4 * j + i] > 0}
    assert {p["latent"]: p["concept"] for p in found if p["concept"]} == {2: "p0", 5: "p1", 1: "p2", 0: "p3"}


def test_contexts_of_a_latent_do_not_overlap():
    codes = torch.tensor([0.5, 3.0, 2.0, 1.0, 0.0, -1.0])
    places = [90, 20, 30, 31, 60, 75]
    assert strongest(codes, places, 5) == [20, 31, 90]
    assert strongest(codes, places, 2) == [20, 31]
    assert strongest(codes, places, 0) == []


# ---------------------------------------------------------------------------------------------------------- geometry
def test_a_draw_that_equals_the_statistic_reaches_it():
    assert p_value(1.0, [1.0, 0.0]) == pytest.approx(2 / 3)
    assert p_value(1.0, [0.0] * 19) == 0.05


TWO = Hierarchy(
    (
        Parent("a", "", ((0,), (), (1,)), (Child("a0", "", ((2,), (), (3,))), Child("a1", "", ((4,), (), (5,)))), ((), ())),
        Parent("b", "", ((6,), (), (7,)), (Child("b0", "", ((8,), (), (9,))), Child("b1", "", ((10,), (), (11,)))), ((), ())),
    ),
    {},
)  # fmt: skip


def rows_and_vectors():
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return normal(12, 5), Vectors(normal(2, 5), normal(4, 5), normal(4, 5))


def test_statistics_are_of_their_own_vectors_and_words():
    g_VD, v = rows_and_vectors()
    found, own = statistics(g_VD, TWO, v), [0, 0, 1, 1]
    parents = v.parents_PD[own]
    torch.testing.assert_close(found.nested, cosine(v.children_KD - parents, parents))
    torch.testing.assert_close(found.disjoint, cosine(v.children_KD - v.rest_KD, v.rest_KD))
    words = g_VD[[3, 5, 9, 11]]
    torch.testing.assert_close(found.child_projection, (words * v.children_KD).sum(1) / v.children_KD.square().sum(1))
    means = torch.stack([g_VD[[1, 3, 5]].mean(0), g_VD[[7, 9, 11]].mean(0)])
    torch.testing.assert_close(found.parent_projection, (means * v.parents_PD).sum(1) / v.parents_PD.square().sum(1))
    apart = torch.stack([v.children_KD[1] - v.children_KD[0], v.children_KD[3] - v.children_KD[2]])
    torch.testing.assert_close(found.siblings, cosine(apart, v.parents_PD).abs())


def test_intervals_draw_whole_parents():
    """Two parents whose children are alike: a draw has the one, the other, or both."""
    values, own = torch.tensor([1.0, 1.0, 1.0, 3.0, 3.0, 3.0]), torch.tensor([4, 4, 4, 7, 7, 7])
    assert clustered_interval(values, own) == (2, 1, 3)
    # Alone in its group, each value is drawn by itself.
    found = clustered_interval(torch.arange(101.0), torch.arange(101))
    assert found[0] == 50
    each = median_interval(range(101), 0, 100)
    assert (each.low, each.high) == pytest.approx(found[1:], abs=3)
    # Groups of unlike size: the larger one is most of a draw that has both.
    assert clustered_interval(torch.tensor([1.0, 1.0, 1.0, 3.0]), torch.tensor([0, 0, 0, 1])) == (1, 1, 3)


def test_intervals_over_parents_hold_the_truth():
    """Of 300 worlds with 12 parents of 8 children, whose parents vary more than their children."""
    draw = torch.Generator().manual_seed(0)
    own = torch.arange(12).repeat_interleave(8)
    held = {"parents": 0, "children": 0}
    for _ in range(300):
        values = torch.randn(12, generator=draw)[own] + 0.3 * torch.randn(96, generator=draw)
        _, low, high = clustered_interval(values, own)
        held["parents"] += low <= 0 <= high
        each = median_interval(values.tolist(), float(values.min()), float(values.max()))
        held["children"] += each.low <= 0 <= each.high
    assert held["parents"] >= 0.88 * 300
    assert held["children"] < 0.8 * 300


def test_real_rows_beside_shuffled_ones():
    """Every column from its own statistic; an angle below the null's is negative."""

    def of(start, shape):
        return torch.linspace(start, start + 0.1, math.prod(shape), dtype=torch.float64).reshape(shape)

    real = Statistics(of(0.1, (4,)), of(0.5, (4,)), of(0.9, (4,)), of(0.6, (2,)), of(0.3, (2,)))
    null = Statistics(of(0.0, (3, 4)), of(-0.2, (3, 4)), of(0.2, (3, 4)), of(0.15, (3, 2)), of(0.4, (3, 2)))
    result = Validation()
    _compare(result, TWO, real, null)
    median = {name: value["median"] for name, value in result.measured.items()}
    degrees = np.rad2deg(np.arccos(real.disjoint.numpy()))
    nulls = np.rad2deg(np.arccos(null.disjoint.numpy()))
    assert median["disjoint_angle"] == pytest.approx(np.median(degrees))
    assert median["disjoint_angle_minus_shuffled"] == pytest.approx(np.median(degrees) - np.median(nulls), abs=0.5)
    assert median["disjoint_angle_minus_shuffled"] < 0
    assert median["nested_angle"] == pytest.approx(np.median(np.rad2deg(np.arccos(real.nested.numpy()))))
    assert median["held_out_projection"] == pytest.approx(0.95)
    assert median["held_out_projection_parents"] == pytest.approx(0.65)
    assert median["sibling_difference_cosine"] == pytest.approx(0.35)
    assert median["held_out_projection_shuffled"] == pytest.approx(0.25, abs=0.01)
    assert median["sibling_difference_cosine_shuffled"] == pytest.approx(0.45, abs=0.03)
    assert result.p_values == {"held_out_projection": 0.25, "disjoint_angle": 0.25}


def test_angles_beside_a_null_are_compared_child_by_child():
    """How much farther from 90 degrees, on either side of it."""
    result = Validation()
    result.arrays = {
        "disjoint": torch.tensor([95.0, 80.0, 92.0]),
        "disjoint_euclidean": torch.tensor([91.0, 85.0, 88.0]),
    }
    validation._farther(result, "disjoint", "euclidean", "euclidean", torch.tensor([0, 1, 2]))
    found = result.measured["disjoint_angle_farther_than_euclidean"]
    assert (found["median"], found["n"]) == (4.0, 3)
    assert (found["low"], found["high"]) == (0.0, 5.0)


def test_the_own_parent_of_the_pairing_is_without_the_child():
    g_VD, v = rows_and_vectors()
    result = Validation()
    _pairing(result, g_VD, TWO, v, 0, 19)
    words = g_VD[[3, 5, 9, 11]]
    own = (words * v.rest_KD).sum(1) / v.rest_KD.square().sum(1)
    assert result.measured["projection_on_own_parent"]["median"] == pytest.approx(float(np.median(own)))
    other = v.parents_PD[[1, 1, 0, 0]]
    on_other = (words * other).sum(1) / other.square().sum(1)
    assert result.measured["projection_on_other_parents"]["median"] == pytest.approx(float(np.median(on_other)))


def test_the_divergence_is_from_before_the_step_of_strength_1(monkeypatch):
    """Its null: the mean over steps of the same causal length in all directions."""
    gamma_VD, v = rows_and_vectors()
    gamma_VD = torch.cat(
        [gamma_VD, torch.randn(20, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]
    )
    geometry, head = causal_geometry(gamma_VD), Head(gamma_VD)
    x_ND = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    real = SimpleNamespace(parent_projection=torch.ones(2))
    result = Validation()
    monkeypatch.setattr(validation, "RANDOM_STEPS", 400)
    null = SimpleNamespace(parent_projection=torch.zeros(19, 2))
    _ratio_invariance(result, head, geometry, TWO, v, x_ND, 0, null, real)
    found, shift = [], []
    for p, words, all_words in ((0, [3, 5], [1, 3, 5]), (1, [9, 11], [7, 9, 11])):
        step = v.parents_PD[p] @ geometry.inv_sqrt_DD / v.parents_PD[p].square().sum()
        before, after = ((x_ND + a * step) @ gamma_VD[words].T for a in (0, 1))
        p_before, p_after = (torch.distributions.Categorical(logits=logits) for logits in (before, after))
        found.append(float(torch.distributions.kl_divergence(p_before, p_after).mean()))
        shift.append(float(((gamma_VD[all_words] - gamma_VD.mean(0)) @ step).mean()))
    assert result.measured["ratio_invariance_kl"]["median"] == pytest.approx(np.median(found))
    assert result.measured["target_shift"]["median"] == pytest.approx(np.median(shift))
    assert result.p_values["ratio_invariance"] == 0.05
    by_chance = []
    for p, words in ((0, [3, 5]), (1, [9, 11])):
        turned = torch.randn(400, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        turned = turned / turned.norm(dim=1, keepdim=True) / v.parents_PD[p].norm() @ geometry.inv_sqrt_DD
        before = torch.distributions.Categorical(logits=x_ND @ gamma_VD[words].T)
        after = torch.distributions.Categorical(logits=(x_ND + turned[:, None]) @ gamma_VD[words].T)
        by_chance.append(float(torch.distributions.kl_divergence(before, after).mean()))
    assert result.arrays["kl_random_step"].tolist() == pytest.approx(by_chance, rel=0.3)
    beyond = [one - other for one, other in zip(found, result.arrays["kl_random_step"].tolist(), strict=True)]
    assert result.measured["ratio_invariance_kl_minus_random"]["median"] == pytest.approx(np.median(beyond))


# --------------------------------------------------------------------------------------------- store, plan and report
def test_rows_across_shards_and_words_of_estimating(tmp_path):
    from safetensors.numpy import save_file

    x_ND = np.arange(14, dtype=np.float32).reshape(7, 2)
    shards = []
    for key, part in (("one", x_ND[:3]), ("two", x_ND[3:])):
        part.tofile(tmp_path / f"{key}.f32")
        shards.append({"key": key, "rows": len(part), "sha256": sha256(tmp_path / f"{key}.f32")})
    write_json(tmp_path / "index.json", {"width": 2, "cache": str(tmp_path), "shards": shards})
    following = np.array([0, 2, 3, 8, 9, -1, 1])
    save_file({"word": following, "split": np.zeros(7, np.int64)}, tmp_path / "arrays.safetensors")
    store = Store(tmp_path, TWO)
    assert store.rows(np.array([6, 2, 3, 0])).tolist() == x_ND[[6, 2, 3, 0]].tolist()
    # 0, 2 and 8 are words that vectors were estimated from; 3, 9 and 1 are not, and -1 is no word.
    assert store.held_out(np.arange(7)).tolist() == [False, False, True, False, True, True, True]
    assert store.labels(np.arange(7)).tolist() == [[2, -1], [0, -1], [0, -1], [-1, 0], [-1, 0], [-1, -1], [2, -1]]


def test_an_evaluation_is_stable_beside_the_next_seed():
    jobs = {j.name: j for j in phase4(StudyConfig(seeds=3, run={"seed": 5})) if j.verb == "evaluate"}
    assert [jobs[f"evaluate_teacher_s{s}"].needs[2:] for s in (5, 6, 7)] == [
        ("teacher_s5", "teacher_s6"), ("teacher_s6", "teacher_s7"), ("teacher_s7", "teacher_s5"),
    ]  # fmt: skip
    assert [jobs[f"evaluate_random_s{s}"].config.seed for s in (5, 6, 7)] == [5, 6, 7]


def test_each_statistic_stands_beside_its_own_nulls():
    row = {"arm": "geometry", "seed": 0, "passed_held_out_projection": True, "p_held_out_projection": 0.05}
    names = ("held_out_projection", "held_out_projection_shuffled", "held_out_projection_sibling_swap", "disjoint_angle", "target_shift",
             "projection_on_own_parent", "projection_on_other_parents")  # fmt: skip
    for i, name in enumerate(names):
        row |= {f"{name}_median": 0.1 + i, f"{name}_low": 0.05 + i, f"{name}_high": 0.2 + i}
    record = SimpleNamespace(table=pd.DataFrame([row]))
    found = geometry_table(record)
    assert found.rows[0] == (
        "held-out projection on the own concept", "0.100 [0.050, 0.200]",
        "shuffled 1.100 [1.050, 1.200]; sibling swap 2.100 [2.050, 2.200]",
    )  # fmt: skip
    assert found.rows[1][1:] == ("3.100 [3.050, 3.200]", "")
    assert found.rows[2][1:] == ("5.100 [5.050, 5.200]", "other parents 6.100 [6.050, 6.200]")
    assert "held_out_projection passes (p = 0.05)" in found.note


def test_arms_are_means_over_their_own_seeds():
    rows = [
        {"arm": arm, "seed": seed, "phase": phase, "purity": value, "purity_null": value / 10}
        for arm, seed, phase, value in (
            ("teacher", 1, "phase3", 0.5), ("teacher", 2, "phase3", 0.7), ("random", 1, "phase2", 0.2),
            ("teacher", 3, "phase4", math.nan), ("teacher", 1, "phase3", 0.6),
        )
    ]  # fmt: skip
    record = SimpleNamespace(table=pd.DataFrame(rows))
    found = arm_table(record, ["teacher", "random"], "Arms", ("purity", "leakage"), "")
    assert found.columns == ("arm", "seeds", "purity")
    assert [row[:2] for row in found.rows] == [("teacher", 2), ("random", 1)]
    assert [row[2] for row in found.rows] == pytest.approx([0.6, 0.2])
    bracketed = arm_table(record, ["random"], "Arms", ("purity",), "", null=True)
    assert bracketed.rows == [("random", 1, "0.2 (0.02)")]


# ---------------------------------------------------------------------------------------------------------- the figures
@pytest.fixture
def axes(monkeypatch):
    """The axes of every figure, in order."""
    from matplotlib import pyplot

    found = []
    monkeypatch.setattr(visualization, "save_figure", lambda figure, path: found.append(figure.axes) or path)
    yield found
    pyplot.close("all")


def test_purity_stands_over_leakage_by_arm(axes, tmp_path):
    of = [("a", 0.1, 0.7), ("a", 0.3, 0.9), ("b", 0.2, 0.4)]
    visualization.plot_purity_leakage(pd.DataFrame(of, columns=["arm", "leakage", "purity"]), tmp_path / "x")
    (axis,) = axes[-1]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("leakage", "purity")
    seeds, means, other, _ = (dots.get_offsets().data.tolist() for dots in axis.collections)
    assert (seeds, other) == ([[0.1, 0.7], [0.3, 0.9]], [[0.2, 0.4]])
    assert means[0] == pytest.approx([0.2, 0.8])
    assert [dots.get_label() for dots in axis.collections[::2]] == ["a", "b"]


def test_steering_is_drawn_by_strength_from_its_arrays(axes, tmp_path):
    def curves(k):
        return {
            "strengths": np.array([0.0, 2.0]), "target": k * np.array([[1.0, 3.0], [5.0, 7.0]]),
            "off_target": k * np.array([[0.1, 0.3], [0.5, 0.7]]), "log_probability": k * np.array([-1.0, -4.0]),
        }  # fmt: skip

    runs = {"evaluate_a_s1": curves(1), "evaluate_a_s2": curves(3), "evaluate_b_s1": curves(10)}
    visualization.plot_steering(
        runs, {"evaluate_a_s1": "a", "evaluate_a_s2": "a", "evaluate_b_s1": "b"}, tmp_path / "x"
    )
    logits, change = axes[-1]
    found = [(line.get_linestyle(), line.get_color(), *line.get_ydata()) for line in logits.lines]
    first, second = visualization.COLOURS[:2]
    assert found == [
        ("-", first, 4, 12), (":", first, pytest.approx(0.4), pytest.approx(1.2)),
        ("-", second, 20, 60), (":", second, pytest.approx(2), pytest.approx(6)),
    ]  # fmt: skip
    assert [(line.get_color(), *line.get_ydata()) for line in change.lines] == [(first, -2, -8), (second, -10, -40)]
    assert all(list(line.get_xdata()) == [0, 2] for line in [*logits.lines, *change.lines])


def test_angles_and_projections_are_drawn_from_their_arrays(axes, tmp_path):
    """Every statistic is one value of its own, so that its histogram has one bar, over that value."""
    kinds = ("", "_shuffled", "_random_parent", "_label_permutation", "_euclidean")
    at = {f"{name}{kind}": 61.0 + 2 * i + 20 * j for j, name in enumerate(("nested", "disjoint")) for i, kind in enumerate(kinds)}  # fmt: skip
    at |= {"child_projection": 0.1, "child_projection_shuffled": 0.2, "child_projection_sibling_swap": 0.3}
    visualization.plot_angles({f"null:{name}": np.full(5, value) for name, value in at.items()}, tmp_path / "x")

    def highest(axis):
        bars = {patch.get_label(): patch.get_xy() for patch in axis.patches}
        return {label: float(xy[xy[:, 1] == xy[:, 1].max(), 0].mean()) for label, xy in bars.items()}

    labels = ("measured", "shuffled rows", "random parent", "random part of the parent", "Euclidean")
    for axis, start in zip(axes[-1][:2], (61, 81), strict=True):
        assert highest(axis) == pytest.approx({label: start + 2 * i for i, label in enumerate(labels)}, abs=1.01)
    assert highest(axes[-1][2]) == pytest.approx(
        {"measured": 0.1, "shuffled rows": 0.2, "a sibling's words": 0.3}, abs=0.03
    )


def test_the_heat_map_is_of_cosines_with_lines_between_parents(axes, tmp_path):
    draw = np.random.default_rng(0)
    children, shuffled = draw.normal(size=(5, 3)), draw.normal(size=(5, 3))
    arrays = {
        "unified_children": children,
        "null:unified_children_shuffled": shuffled,
        "own_parent": np.array([0, 0, 1, 1, 1]),
    }
    visualization.plot_tree_heatmap(arrays, tmp_path / "x")
    for axis, vectors, title in zip(axes[-1], (children, shuffled), ("measured", "shuffled rows"), strict=False):
        expected = cosine(torch.tensor(vectors)[:, None], torch.tensor(vectors)).numpy()
        np.testing.assert_allclose(axis.images[0].get_array(), expected, atol=1e-9)
        assert axis.get_title() == title
        assert [line.get_xdata()[0] for line in axis.lines if line.get_xdata()[0] not in (0, 1)] == [1.5]


def test_the_polytope_is_of_the_parent_with_most_children(axes, tmp_path):
    none = ((), (), ())
    few, many = (
        Parent(f"{name}.n.01", "", none, tuple(Child(f"{c}.n.01", "", none) for c in children), ())
        for name, children in (("few", "x"), ("many", "abc"))
    )
    children = np.array([[9.0, 9, 9], [1.0, 0, 2], [0.0, 1, 3], [-1.0, -1, 4]])
    arrays = {
        "own_parent": np.array([0, 1, 1, 1]), "unified_children": children,
        "unified_parents": np.array([[1.0, 0, 0], [0.0, 0, 5]]),
    }  # fmt: skip
    visualization.plot_polytope(arrays, Hierarchy((few, many), {}), tmp_path / "x")
    left, right = axes[-1]
    assert left.get_title() == "many.n.01"
    assert [text.get_text() for text in left.texts] == ["a", "b", "c"]
    plane = left.collections[0].get_offsets().data
    apart = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    flat = children[1:, :2]
    np.testing.assert_allclose(apart, np.linalg.norm(flat[:, None] - flat[None], axis=-1), atol=1e-9)
    assert list(right.collections[0]._offsets3d[2]) == pytest.approx([2, 3, 4])


def test_notes_are_on_the_arms_that_are_there():
    def said(*arms):
        return " ".join(notes(SimpleNamespace(table=pd.DataFrame({"arm": ["geometry", *arms]}))))

    assert "frozen_random" in said("teacher", "random_teacher", "frozen_random")
    assert "frozen_random" not in said("teacher", "random", "random_teacher")
    assert "rotated at random" not in said("teacher", "random")
    assert "random_staged" not in said("topk")


def labelled_record(folder):
    """Two arms of three seeds, on texts and prompts, with what they stand beside."""
    rows = []
    for arm, start in (("random", 0.2), ("teacher", 0.5)):
        for seed in range(3):
            row = {"run": f"{arm}_s{seed}", "arm": arm, "seed": seed, "phase": "phase3", "explained_variance": 0.9}
            for i, suffix in enumerate(("", "_prompts")):
                row |= {
                    f"purity{suffix}": start + 0.01 * seed + i / 10,
                    f"leakage{suffix}": 0.3 + i / 10,
                    f"base_rate{suffix}": 0.05 + i,
                }
                row |= {
                    f"{name}{suffix}_{kind}": 0.6 + i + k / 10
                    for k, kind in enumerate(("reference", "shuffled"))
                    for name in ("purity", "leakage")
                }
            rows.append(row)
    return SimpleNamespace(table=pd.DataFrame(rows), folder=folder)  # fmt: skip


def test_labelled_figures_stand_beside_their_references(tmp_path):
    record = labelled_record(tmp_path)
    found = labelled_table(record, ["random", "teacher"])
    assert found.columns == ("what", "purity", "leakage", "purity prompts", "leakage prompts")
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["teacher"] == pytest.approx((0.51, 0.3, 0.61, 0.4))
    assert rows["phase 1's vectors, untrained"] == pytest.approx((0.6, 0.6, 1.6, 1.6))
    assert rows["a latent that is always on"] == pytest.approx((0.05, 1, 1.05, 1))
    assert rows["random, labels shuffled"] == pytest.approx((0.7, 0.7, 1.7, 1.7))
    assert _levels(record, ("purity", "leakage_prompts")) == {
        "purity": {"phase 1's vectors": pytest.approx(0.6), "base rate": pytest.approx(0.05)},
        "leakage prompts": {"phase 1's vectors": pytest.approx(1.6)},
    }


def test_every_arm_is_drawn_with_its_interval_over_its_numbers(axes, tmp_path, monkeypatch):
    """Base rate and reference are upright lines; tables of numbers lie under the figures."""
    import studycore.figures as frame

    drawn = []
    monkeypatch.setattr(frame, "save_figure", lambda figure, path: drawn.append(figure.axes) or path)
    pictures = arm_pictures(labelled_record(tmp_path), ["random", "teacher"])
    assert [picture.path.stem for picture in pictures] == ["arms", "purity_leakage", "prompts", "pairs"]
    assert [picture.table is not None for picture in pictures] == [True, True, False, True]
    assert all(len(picture.table.columns) <= 10 for picture in pictures if picture.table)
    purity = drawn[0][0]
    assert purity.get_xlabel() == "purity"
    lines = {line.get_linestyle(): (line.get_label(), line.get_xdata()[0]) for line in purity.lines if line.get_linestyle() in ("--", ":")}  # fmt: skip
    assert lines == {"--": ("phase 1's vectors", pytest.approx(0.6)), ":": ("base rate", pytest.approx(0.05))}
    intervals = [tuple(line.get_xdata()) for line in purity.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2 and line.get_marker() == "None"]  # fmt: skip
    half = 4.3027 * 0.01 / 3**0.5
    assert intervals[:2] == [pytest.approx((x - half, x + half), abs=1e-4) for x in (0.21, 0.51)]


def test_yardsticks_that_cannot_fail_say_so(tmp_path):
    note = " ".join(arm_pictures(labelled_record(tmp_path), ["random"])[-1].table.note.split())
    assert "Some of these cannot fail and show nothing" in note
    for name in ("hard absorption", "distinct (1)", "reconstruction condition"):
        assert name in note
