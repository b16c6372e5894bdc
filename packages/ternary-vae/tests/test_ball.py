"""decode ball: one point that is decoded and ordered, its flat twin, what the prior meets, and the shuffled control."""

import dataclasses
import math

import pytest
import torch
from conftest import train_run

import ternary_vae.train as module
from studycore.checkpoints import read_index
from studycore.metrics_log import read_rows
from studycore.models import count_parameters
from ternary_vae.bands import prior_std
from ternary_vae.checkpoint import load_model
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.forward import set_trained
from ternary_vae.metrics.evaluate import PRIOR_SAMPLES, all_metrics, prior_coverage, rate
from ternary_vae.metrics.linear import linear_right
from ternary_vae.model import create_model
from ternary_vae.stages import stages_of

BALL = {
    "decode": "ball", "stages": "joint", "view": "a", "encoder_a_lr": 1.0, "bands": "prior", "richness_weight": 0.0,
    "kl_weight": 0.01, "deep_share": 0.0,
}  # fmt: skip
OPERATIONS = Operations.all(3)


@pytest.fixture
def ball(small):
    return lambda **changes: small(**{**BALL, **changes})


def test_one_point_is_decoded_and_ordered(ball):
    model = create_model(ball(), 0)
    assert model.encoder_B is None and model.projection.proj_B is None and model.views == ("a",)
    code = model.encode(OPERATIONS.x_NM, "a")
    out = model(OPERATIONS.x_NM)
    # The point that is decoded lies where the radius says: log_0 has its length, in the prior's unit.
    log_ND = model.latent(code, None).decoded_ND * prior_std(model.config)
    torch.testing.assert_close(log_ND.norm(dim=1), out["rho_A"])
    point = model.latent(code, None).point
    torch.testing.assert_close((point.rho_N, point.z_hyp_ND), (out["rho_A"], out["z_A_hyp"]))
    torch.testing.assert_close(
        torch.nn.functional.normalize(log_ND, dim=1), torch.nn.functional.normalize(out["z_A_hyp"], dim=1)
    )
    torch.testing.assert_close(out["z_A_hyp"].norm(dim=1), torch.tanh(out["rho_A"] / 2))
    torch.testing.assert_close(out["logits"], model.decoder_A((log_ND / prior_std(model.config)).float()))


def test_gradients_of_the_reconstruction_reach_radius_and_direction(ball):
    config = ball()
    (stage,) = stages_of(config)
    model = create_model(config, 0)
    trained = set_trained(model, config, stage)
    assert set(trained) == {name for name, _ in model.named_parameters()}, "nothing is idle"
    code = model.encode(OPERATIONS.x_NM, "a")
    noise_ND = torch.randn(27, config.latent_dim, generator=torch.Generator().manual_seed(0))
    model.logits(model.latent(code, noise_ND).decoded_ND).square().sum().backward()
    reached = {name for name, weight in trained.items() if weight.grad is not None and bool((weight.grad != 0).any())}
    assert {
        "projection.proj_A.radius_net.0.weight",
        "projection.proj_A.direction_net.3.weight",
        "encoder_A.fc_logvar.weight",
    } <= reached


def test_the_flat_twin_has_equal_parameters_and_sums_where_the_ball_transports(ball):
    curved, flat = (
        create_model(ball(geometry=geometry), 0).requires_grad_(False) for geometry in ("hyperbolic", "euclidean")
    )
    assert count_parameters(curved) == count_parameters(flat)
    code = flat.encode(OPERATIONS.x_NM, "a")
    noise_ND = torch.randn(27, 4, generator=torch.Generator().manual_seed(0)).double()
    std = prior_std(flat.config)
    added_ND = noise_ND * torch.exp(code.logvar_ND.double() / 2)
    mean, sample = flat.latent(code, None), flat.latent(code, noise_ND)
    torch.testing.assert_close(sample.decoded_ND, mean.decoded_ND + added_ND)
    assert float((curved.latent(code, noise_ND).decoded_ND - sample.decoded_ND).abs().max()) > 0.01
    # Its divergence is that of normal distributions, here by PyTorch.
    own = torch.distributions.Normal(mean.decoded_ND * std, std * torch.exp(code.logvar_ND.double() / 2))
    prior = torch.distributions.Normal(torch.zeros(4).double(), std)
    z_ND = sample.decoded_ND * std
    torch.testing.assert_close(sample.kl_NK[:, 0], (own.log_prob(z_ND) - prior.log_prob(z_ND)).sum(1))


def test_small_runs_of_the_ball_reach_coverage_and_order(ball, tmp_path):
    config = ball(epochs=300, encoder_sizes=[32, 16], decoder_sizes=[32], eval_every=100, checkpoint_every=300)
    folder = train_run(config, tmp_path / "run")
    last = read_rows(folder / "metrics.jsonl")[-1]
    assert (last["coverage"], last["positive_gaps"], last["somers_d"]) == (1.0, 3, -1.0)
    model = load_model(str(folder / "checkpoints" / read_index(folder / "checkpoints")["last"]))[2]
    metrics = all_metrics(model, OPERATIONS, "a", 3)
    assert 1.0 < metrics["kl_of_least"] < 8 and metrics["kl"] == pytest.approx(metrics["kl_of_least"] * math.log(27))
    assert metrics["prior_coverage"] > 0.7 and "hierarchy_B" not in metrics


def test_the_rate_is_at_least_the_information_and_the_prior_meets_what_is_decoded(small, ball, monkeypatch):
    """A decoder that always says the same meets one operation; one that copies signs meets 8 of 27."""
    model = create_model(ball(), 0)
    monkeypatch.setattr(model, "logits", lambda z_ND: torch.tensor([0.0, 0.0, 1.0]).expand(len(z_ND), 3, 3))
    assert prior_coverage(model, OPERATIONS, 0) == pytest.approx(1 / 27)

    def signs(z_ND):
        return torch.stack([z_ND[:, :3] < 0, torch.zeros_like(z_ND[:, :3]) > 0, z_ND[:, :3] >= 0], -1).double()

    monkeypatch.setattr(model, "logits", signs)
    assert prior_coverage(model, OPERATIONS, 0) == pytest.approx(8 / 27) and PRIOR_SAMPLES * 27 > 8
    plain = create_model(small(), 0).requires_grad_(False)
    code = plain.encode(OPERATIONS.x_NM, "a")
    own = torch.distributions.Normal(code.mu_ND, torch.exp(code.logvar_ND / 2))
    closed = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert rate(plain, OPERATIONS, 0) == pytest.approx(float(closed), rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{"stages": "coverage_hierarchy"}, {"view": "b"}, {"code": "sample"}, {"forward": "plain"}, {"radius": "euclidean"}]
)  # fmt: skip
def test_what_belongs_to_two_codes_is_refused(ball, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        ball(**changes)


def test_a_flat_geometry_without_the_ball_is_refused():
    with pytest.raises(ValueError, match="geometry: euclidean"):
        TrainConfig(geometry="euclidean")


# ------------------------------------------------------------------------------------------------- shuffled valuations
def test_the_control_deals_out_the_same_valuations_to_other_operations():
    true, dealt = Operations.all(5), Operations.all(5, 7)
    assert torch.equal(true.x_NM, dealt.x_NM) and torch.equal(true.v_N.bincount(), dealt.v_N.bincount())
    assert float((true.v_N == dealt.v_N).double().mean()) < 0.6 and not torch.equal(dealt.v_N, Operations.all(5, 8).v_N)
    pairs = {(int(v), float(place)) for v, place in zip(true.v_N, true.place_N, strict=True)}
    assert pairs == {(int(v), float(place)) for v, place in zip(dealt.v_N, dealt.place_N, strict=True)}


def test_a_shuffled_run_is_measured_by_its_own_valuations(ball, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_metrics", lambda *_: {})
    config = ball(valuations="shuffled", epochs=2)
    folder = train_run(config, tmp_path / "run")
    where = str(folder / "checkpoints" / read_index(folder / "checkpoints")["last"])
    model = load_model(where)[2]
    row = read_rows(folder / "metrics.jsonl")[-1]
    own, true = (all_metrics(model, Operations.all(3, seed), "a", 0)["hierarchy"] for seed in (config.seed, None))
    assert row["hierarchy"] == pytest.approx(own) and abs(own - true) > 1e-3


# --------------------------------------------------------------------------------------------------- the linear baseline
def test_ten_operations_span_all_and_fewer_dimensions_do_not():
    everything = Operations.all(9)
    draw = torch.Generator().manual_seed(0)
    seen_N = torch.zeros(3**9, dtype=torch.bool)
    seen_N[torch.randperm(3**9, generator=draw)[:30]] = True
    assert bool(linear_right(everything.x_NM, seen_N, 16).all()) and bool(
        linear_right(everything.x_NM, seen_N, 9).all()
    )
    fewer = [float(linear_right(everything.x_NM, seen_N, k).double().mean()) for k in (8, 6, 4)]
    assert 0.7 > fewer[0] > fewer[1] > fewer[2] and fewer[2] < 0.05


def test_the_best_checkpoint_is_chosen_by_seen_operations(ball):
    metrics = {
        "coverage": 0.2,
        "coverage_seen": 1.0,
        "hierarchy": -0.1,
        "hierarchy_seen": -0.8,
        "min_level_gap": -9.0,
        "min_level_gap_seen": 0.0,
    }
    (joint,) = stages_of(ball())
    assert module.score(metrics, joint) == pytest.approx(1.8)
    assert module.score({**metrics, "hierarchy": -0.8, "coverage": 1.0}, joint) == module.score(metrics, joint)


def test_a_run_of_a_part_records_the_order_of_what_it_sees(ball, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_metrics", lambda *_: {})
    config = ball(train_fraction=0.5, epochs=2)
    row = read_rows(train_run(config, tmp_path / "run") / "metrics.jsonl")[-1]
    assert {"hierarchy_seen", "min_level_gap_seen", "coverage_unseen"} <= set(row) and row["hierarchy_seen"] != row[
        "hierarchy"
    ]
    assert dataclasses.replace(config, seed=4).shuffle_seed is None
