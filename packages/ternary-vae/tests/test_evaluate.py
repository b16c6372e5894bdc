"""Which codes, radii and operations each reported metric is of, against the model's own outputs and the formulas."""

import numpy as np
import pytest
import torch

from studycore.models import count_parameters
from studycore.streams import generator
from ternary_vae.bands import Targets, target_radius
from ternary_vae.data import Operations
from ternary_vae.history import COVERAGE_METRICS
from ternary_vae.metrics import evaluate, final, radii
from ternary_vae.metrics.closed_form import closed_form
from ternary_vae.model import Code, create_model

OPERATIONS = Operations.all(3)
V_N = OPERATIONS.v_N.numpy()


@pytest.fixture
def model(small):
    """One whose two encoders, projections and radii order the operations otherwise; some operations come back right."""
    model = create_model(small(curvature=0.6, latent_dim=6), 5).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * torch.randn(weight.shape, generator=draw, dtype=torch.float64).to(weight)
        logits = model(OPERATIONS.x_NM)["logits"]
        # The last trit is right where it is 0, and so on: by its bias alone some operations are right.
        model.decoder_A.decoder[-1].bias += 4 * torch.nn.functional.one_hot(torch.tensor([0, 1, 1]), 3).flatten()
    assert logits.shape == (27, 3, 3)
    return model


def outputs(model):
    with torch.no_grad():
        return model(OPERATIONS.x_NM)


@pytest.mark.parametrize("view", ["a", "b", "both"])
def test_all_metrics_are_of_the_views_mean_codes(model, view):
    out, letter = outputs(model), "A" if view == "a" else "B"
    metrics = evaluate.all_metrics(model, OPERATIONS, view, 3)
    right_N = (out["logits"].argmax(-1) == OPERATIONS.target_NM).all(-1)
    assert 0 < int(right_N.sum()) < 27
    assert (metrics["coverage"], metrics["covered"], metrics["operations"]) == (
        right_N.double().mean(),
        right_N.sum(),
        27,
    )
    points_ND, rho_N = out[f"z_{letter}_hyp"].double(), out[f"rho_{letter}"].double().numpy()
    norm_N = points_ND.norm(dim=1).numpy()
    order = radii.radius_metrics(V_N, norm_N, rho_N)
    assert {name: metrics[name] for name in order} == pytest.approx(order, abs=1e-9)
    ranks = {x: radii.hierarchy(V_N, out[f"rho_{x}"].double().numpy()) for x in "AB"}
    assert (metrics["hierarchy_A"], metrics["hierarchy_B"]) == pytest.approx((ranks["A"], ranks["B"]))
    assert abs(ranks["A"] - ranks["B"]) > 0.01 and metrics["hierarchy"] == metrics[f"hierarchy_{letter}"]
    by_geodesic = radii.dist_corr_geodesic(points_ND, OPERATIONS.index_N, 3, 0.6)
    by_levels = radii.dist_corr_levels(points_ND, OPERATIONS.v_N)
    assert (metrics["dist_corr_geodesic"], metrics["dist_corr_levels"]) == pytest.approx(
        (by_geodesic, by_levels), abs=1e-9
    )
    assert by_geodesic != pytest.approx(radii.dist_corr_geodesic(points_ND, OPERATIONS.index_N, 3, 1.0), abs=1e-6)
    assert metrics["q"] == pytest.approx(by_levels - 1.5 * metrics["hierarchy"])
    assert metrics["q_original"] == pytest.approx(by_levels + 1.5 * abs(metrics["hierarchy"]))
    assert not [name for name in metrics if name.endswith(("_seen", "_unseen")) or name == "unseen"]


def test_sampled_coverage_is_of_one_sample_of_encoder_a(model):
    with torch.no_grad():
        code = model.encode(OPERATIONS.x_NM, "a")
        noise_ND = torch.randn(27, 6, generator=generator(3, "evaluation sample", 0), dtype=torch.float64)
        z_ND = Code(code.mu_ND, code.logvar_ND).sample(noise_ND.float())
        right_N = radii.right(model.decoder_A(z_ND), OPERATIONS.target_NM)
    assert torch.equal(evaluate.reconstruct(model, OPERATIONS, 3), right_N)
    metrics = evaluate.all_metrics(model, OPERATIONS, "b", 3)
    assert metrics["coverage_sampled"] == right_N.double().mean() != metrics["coverage"]
    assert evaluate.all_metrics(model, OPERATIONS, "b", 4)["coverage_sampled"] != metrics["coverage_sampled"]


def test_many_operations_are_taken_in_parts_with_noise_of_their_own(model, monkeypatch):
    whole = [evaluate.reconstruct(model, OPERATIONS), *evaluate.radii(model, OPERATIONS, "a")]
    whole.append(evaluate.points(model, OPERATIONS, "a"))
    seen = []
    sample = Code.sample
    monkeypatch.setattr(Code, "sample", lambda code, noise_ND: seen.append(noise_ND) or sample(code, noise_ND))
    monkeypatch.setattr(evaluate, "CHUNK", 9)
    parts = [evaluate.reconstruct(model, OPERATIONS), *evaluate.radii(model, OPERATIONS, "a")]
    parts.append(evaluate.points(model, OPERATIONS, "a"))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    evaluate.reconstruct(model, OPERATIONS, 3)
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("view", ["a", "b"])
def test_what_training_did_not_see_is_measured_apart(model, view, monkeypatch):
    seen_N = torch.arange(27) % 4 == 1
    monkeypatch.setattr(evaluate, "linear_right", lambda x_NM, seen_N, width: seen_N if width == 6 else ~seen_N)
    metrics = evaluate.all_metrics(model, OPERATIONS, view, 3, seen_N)
    out = outputs(model)
    right_N = radii.right(out["logits"], OPERATIONS.target_NM)
    assert metrics["unseen"] == 20
    assert metrics["linear_coverage_unseen"] == 0, "a baseline that is right on the seen alone"
    assert metrics["coverage_seen"] == right_N[seen_N].double().mean()
    assert metrics["coverage_unseen"] == right_N[~seen_N].double().mean()
    assert len({metrics["coverage"], metrics["coverage_seen"], metrics["coverage_unseen"]}) == 3
    unseen = (~seen_N).numpy()
    rho_N = out[f"rho_{view.upper()}"].double().numpy()[unseen]
    assert metrics["hierarchy_unseen"] == pytest.approx(radii.hierarchy(V_N[unseen], rho_N))
    assert metrics["somers_d_unseen"] == pytest.approx(radii.somers_d(V_N[unseen], rho_N))
    assert metrics["hierarchy_ceiling_unseen"] == radii.hierarchy_ceiling(V_N[unseen]) != metrics["hierarchy_ceiling"]


def test_an_inverted_order_tells_the_two_kinds_of_q_apart(model):
    z_ND = outputs(model)["z_B_hyp"].double()
    metrics = evaluate.distance_metrics(z_ND, OPERATIONS, 0.6, 0.4)
    assert metrics["q"] == pytest.approx(metrics["dist_corr_levels"] - 0.6)
    assert metrics["q_original"] == pytest.approx(metrics["dist_corr_levels"] + 0.6)
    assert set(evaluate.distance_metrics(z_ND, OPERATIONS, 0.6, None)) == {"dist_corr_geodesic", "dist_corr_levels"}


def test_codes_that_are_there_are_not_computed_again(model, monkeypatch):
    codes = {}
    wanted = evaluate.all_metrics(model, OPERATIONS, "b", 3, codes=codes)
    assert set(codes) == {"a", "b"}
    monkeypatch.setattr(type(model), "encode", None)
    assert evaluate.all_metrics(model, OPERATIONS, "b", 3, codes=codes) == wanted


def test_each_metric_of_radii_is_of_the_radius_that_its_unit_says():
    """Of norms and distances that have nothing to do with one another."""
    random = np.random.default_rng(0)
    norm_N, rho_N = random.uniform(size=27).round(2), random.uniform(size=27).round(1)
    metrics = radii.radius_metrics(V_N, norm_N, rho_N)
    gaps = radii.level_gaps(V_N, norm_N)
    assert metrics == {
        "hierarchy": radii.hierarchy(V_N, rho_N), "hierarchy_ceiling": radii.hierarchy_ceiling(V_N),
        "hierarchy_of_ceiling": -radii.hierarchy(V_N, rho_N) / radii.hierarchy_ceiling(V_N),
        "somers_d": radii.somers_d(V_N, rho_N), "min_level_gap": min(gaps), "positive_gaps": sum(g > 0 for g in gaps),
        "gaps": 3, "tied_radius_share": radii.tied_radius_share(rho_N), "richness": radii.richness(V_N, norm_N),
        "richness_hyperbolic": radii.richness(V_N, rho_N),
        "richness_largest_share": radii.richness_largest_share(V_N, norm_N),
        "somers_d_depths": radii.mean_of(radii.depth_order(V_N, rho_N)),
    }  # fmt: skip
    touching = radii.radius_metrics(np.array([0, 1, 2]), np.array([0.5, 0.5, 0.1]), np.array([3.0, 2.0, 1.0]))
    assert (touching["positive_gaps"], touching["min_level_gap"]) == (1, 0), "levels that touch are not apart"


@pytest.mark.parametrize("radius", ["hyperbolic", "euclidean"])
def test_the_closed_form_is_measured_in_the_configurations_geometry(small, radius):
    config = small(curvature=0.6, max_radius=0.8, radius=radius)
    r_N = target_radius(OPERATIONS.v_N, OPERATIONS.place_N, Targets.of(config, torch.zeros(4).double())).numpy()
    norm_N = np.tanh(np.sqrt(0.6) * r_N / 2) / np.sqrt(0.6) if radius == "hyperbolic" else r_N
    metrics = closed_form(config)
    assert metrics["richness"] == pytest.approx(radii.richness(V_N, norm_N))
    assert metrics["richness_hyperbolic"] == pytest.approx(radii.richness(V_N, r_N))
    assert (metrics["somers_d"], metrics["tied_radius_share"]) == (-1, 0) and norm_N.max() < 0.8


def test_the_untrained_model_is_the_one_that_the_run_began_with(small):
    config = small(seed=7, projection_seed=9, view="a")
    began = create_model(config, 7, 9)
    wanted = evaluate.all_metrics(began, OPERATIONS, "a", 7)
    assert evaluate.untrained(config, OPERATIONS) == wanted
    assert final.baselines(config) == {
        "closed_form": closed_form(config), "untrained": wanted,
    }  # fmt: skip


def test_results_of_a_run_leave_out_what_it_did_not_train(small, model):
    seen_N, rows = torch.arange(27) < 20, [{"stage": "coverage", "epoch": 4, "coverage": 0.5}]
    rows.append({"stage": "coverage", "epoch": 8, "coverage": 0.999})
    ordering = small(curvature=0.6, latent_dim=6, view="a")
    everything = evaluate.all_metrics(model, OPERATIONS, "a", ordering.seed, seen_N)
    metrics = final.run_metrics(ordering, model, OPERATIONS, seen_N, rows)
    assert metrics == {**everything, "last_epoch": 8, "parameters": count_parameters(model)}
    covering = final.run_metrics(small(stages="coverage", view="a"), model, OPERATIONS, seen_N, rows)
    assert set(covering) == {*COVERAGE_METRICS, "last_epoch", "parameters"}
    assert all(covering[name] == everything[name] for name in COVERAGE_METRICS)


@pytest.mark.parametrize("view", ["a", "both"])
def test_figures_get_the_views_norms_and_points(small, model, view):
    config, letter = small(curvature=0.6, latent_dim=6, view=view), "A" if view == "a" else "B"
    points_ND = outputs(model)[f"z_{letter}_hyp"].double()
    arrays = final.figure_arrays(config, model, OPERATIONS)
    torch.testing.assert_close(arrays["norm_N"], points_ND.norm(dim=1).float())
    flat_N2 = final.flat_view(points_ND.numpy(), points_ND.norm(dim=1).numpy())
    torch.testing.assert_close(arrays["flat_N2"], torch.from_numpy(flat_N2).float())
    assert final.figure_arrays(small(stages="coverage"), model, OPERATIONS) == {}
