"""The architecture: its size, its ranges, what the curvature reaches, and reproducible first weights."""

import numpy as np
import pytest
import torch

from studycore.configuration import to_dict
from studycore.models import count_parameters
from ternary_vae.bands import Targets
from ternary_vae.config import ArchitectureConfig, TrainConfig
from ternary_vae.data import Operations
from ternary_vae.hyperbolic import to_hyperbolic
from ternary_vae.losses import RADIAL, Weights, geodesic
from ternary_vae.metrics.evaluate import all_metrics, order_metrics
from ternary_vae.metrics.radii import richness
from ternary_vae.model import (
    Code,
    DifferentiableController,
    TernaryVAE,
    TernaryVAEV5_11_PartialFreeze,
    architecture_of,
    build_model,
    create_model,
    draw_weights,
    probe_inputs,
    replay_probe,
)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_size_is_the_published_one():
    """101,663 and 103,269 are stored with the original study, two of which were geoopt's curvature (once per projection)."""
    model = TernaryVAE()
    assert count_parameters(model) == 101_661
    sizes = {name: count_parameters(part) for name, part in model.named_children()}
    encoder = 9 * 256 + 256 + 256 * 128 + 128 + 128 * 64 + 64 + 2 * (64 * 16 + 16)
    decoder = 16 * 32 + 32 + 32 * 64 + 64 + 64 * 27 + 27
    projection = 16 * 64 + 64 + 2 * 64 + 64 * 16 + 16 + 16 * 32 + 32 + 32 + 1
    assert sizes == {
        "encoder_A": encoder, "encoder_B": encoder, "decoder_A": decoder, "projection": 2 * projection,
    }  # fmt: skip
    with_controller = TernaryVAE(use_controller=True)
    assert count_parameters(with_controller) - 101_661 == 8 * 32 + 32 + 2 * 32 + 32 * 32 + 32 + 32 * 6 + 6
    assert count_parameters(TernaryVAE(use_dual_projection=False)) == 101_661 - projection


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"radius": "euclidean"}, {"curvature": 1.1}, {"projection_dtype": "float32"}], ids=str
)
def test_radii_stay_below_the_largest_and_start_in_the_middle(small, changes):
    config = small(**changes)
    model = create_model(config, 0)
    x_NM = Operations.all(3).x_NM
    out = model(x_NM)
    largest = float(to_hyperbolic(torch.tensor(0.95, dtype=torch.float64), config.curvature))
    rho_N, norm_N = model.projection.of("b").radius(model.encode(x_NM, "b").mu_ND)
    middle = norm_N / 0.95 if config.radius == "euclidean" else rho_N / largest
    assert float(middle.min()) > 0.35
    assert float(middle.max()) < 0.65
    torch.testing.assert_close(out["z_B_hyp"].norm(dim=-1), norm_N, rtol=1e-5, atol=0)
    for weight in model.projection.proj_B.radius_net[-1].parameters():
        weight.data.normal_(0, 20, generator=torch.Generator().manual_seed(0))
    for z_ND in (torch.zeros(1, 4), torch.full((1, 4), 3.0), torch.full((1, 4), -3.0), torch.full((1, 4), 1e6)):
        rho_N, norm_N = model.projection.proj_B.radius(z_ND)
        assert 0 <= float(norm_N) <= 0.95 * (1 + 1e-6)
        assert 0 <= float(rho_N) <= largest * (1 + 1e-6)
    assert float(model.projection.proj_B.radius(torch.full((1, 4), 0.1))[1]) < 0.95


@pytest.mark.parametrize("changes", [{}, {"n_projection_layers": 3}, {"radius": "euclidean"}], ids=str)
def test_directions_are_unit_and_start_as_those_of_the_code(small, changes):
    projection = create_model(small(**changes), 0).projection.of("a")
    z_ND = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = projection(z_ND)
    torch.testing.assert_close(point.direction_ND.norm(dim=-1), torch.ones(20).double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(point.direction_ND, z_ND / z_ND.norm(dim=-1, keepdim=True), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(point.z_hyp_ND.norm(dim=-1), point.norm_N, rtol=1e-12, atol=0)
    torch.testing.assert_close(to_hyperbolic(point.norm_N, 1.0), point.rho_N, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.stack(projection.radius(z_ND)), torch.stack(point[:2]), rtol=0, atol=0)
    zero = projection(torch.zeros(1, 4, dtype=torch.float64, requires_grad=True))
    assert bool(zero.z_hyp_ND.isfinite().all())


def test_the_forward_pass_is_deterministic_and_by_the_mean(small):
    model = create_model(
        small(encoder_dropout=0.3, projection_dropout=0.3, activation="silu", encoder_norm=True), 0
    ).eval()
    x_NM = Operations.all(3).x_NM
    one, two = model(x_NM), model(x_NM)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(one["logits"], model.decoder_A(model.encode(x_NM, "a").mu_ND))
    assert one["logits"].shape == (27, 3, 3)
    assert torch.equal(one["z_A_hyp"], model.projection.of("a")(one["mu_A"]).z_hyp_ND)
    assert not torch.equal(model.train()(x_NM)["rho_B"], one["rho_B"]), "dropout is there"


def test_a_sample_is_the_mean_and_noise_times_sigma():
    mu_ND, logvar_ND = torch.ones(2, 3), torch.full((2, 3), 2 * np.log(0.5))
    noise_ND = torch.tensor([[1.0, 0, -1], [2, 2, 2]])
    expected = torch.tensor([[1.5, 1, 0.5], [2, 2, 2]])
    torch.testing.assert_close(Code(mu_ND, logvar_ND).sample(noise_ND), expected)


def test_the_log_variance_is_clamped(small):
    model = create_model(small(), 0)
    model.encoder_A.fc_logvar.bias.data[:2] = torch.tensor([1e4, -1e4])
    logvar_ND = model(Operations.all(3).x_NM)["logvar_A"]
    assert logvar_ND[:, 0].unique().tolist() == [2]
    assert logvar_ND[:, 1].unique().tolist() == [-10]


def loss_gradient_metrics(config: TrainConfig) -> tuple[float, torch.Tensor, dict]:
    operations = Operations.all(config.trits)
    model = create_model(config, 0)
    projection, mu_ND = model.projection.of("b"), model.encode(operations.x_NM, "b").mu_ND.detach()
    targets = Targets.of(config, torch.full((4,), 1e-3, dtype=torch.float64))
    point = projection(mu_ND)
    r_N = point.rho_N if config.radius == "hyperbolic" else point.norm_N
    if config.loss == "geodesic":
        pairs = torch.arange(26).repeat(2, 1) + torch.tensor([[0], [1]])
        points_ND, v_N, index_N = point.z_hyp_ND, operations.v_N, operations.index_N
        parts = geodesic(points_ND, r_N, v_N, index_N, pairs, targets, config, 1.0, (0.0, 1.0, 1.0))
    else:
        parts = RADIAL[config.loss](r_N, operations.v_N, operations.place_N, targets, Weights.of(config))
    loss = sum(parts.values())
    gradient = torch.autograd.grad(loss, projection.radius_net[-1].weight)[0]
    return float(loss.detach()), gradient, order_metrics(model, operations, "b")


@pytest.mark.parametrize("loss", ["ordered", "rich_hierarchy", "geodesic"])
def test_the_curvature_reaches_loss_gradient_and_metrics(small, loss):
    """With the original study's Euclidean radius it reaches none of them: its curvature sweep measured nothing."""
    for radius, alike in (("hyperbolic", False), ("euclidean", True)):
        flat, curved = (loss_gradient_metrics(small(loss=loss, radius=radius, curvature=c)) for c in (0.25, 1.0))
        assert (flat[0] == curved[0]) is alike
        assert torch.equal(flat[1], curved[1]) is alike
        assert (flat[2]["richness"] == curved[2]["richness"]) is alike
        assert flat[2]["hierarchy"] == pytest.approx(curved[2]["hierarchy"], abs=1e-12), "the same order either way"


def test_first_weights_are_functions_of_seed_and_part(small):
    config = small(use_controller=True, loss="geodesic")
    model = create_model(config, 5)
    torch.rand(3)
    assert equal(model, create_model(config, 5))
    other = create_model(config, 6)
    assert not any(equal(getattr(model, name), getattr(other, name)) for name, _ in model.named_children())
    moved = create_model(config, 5, projection_seed=9)
    for name, part in model.named_children():
        assert equal(part, getattr(moved, name)) is (name != "projection"), name
    assert not equal(model.encoder_A, model.encoder_B)
    assert not equal(model.projection.proj_A.radius_net, model.projection.proj_B.radius_net)
    wider = create_model(small(hidden_dim=80, n_projection_layers=2), 5)
    assert equal(model.encoder_A, wider.encoder_A), "another projection leaves the encoders as they are"


def test_both_precisions_start_from_the_same_numbers(small):
    single = create_model(small(projection_dtype="float32"), 5)
    double = create_model(small(dtype="float64"), 5)
    for name, weight in double.state_dict().items():
        assert weight.dtype == torch.float64
        assert torch.equal(single.state_dict()[name], weight.float()), name


@torch.no_grad()
def test_weights_are_uniform_within_their_bound():
    layer = torch.nn.Linear(100, 300)
    draw_weights(layer, 0, "layer")
    for weight in (layer.weight, layer.bias):
        assert float(weight.abs().max()) <= 0.1
        assert float(weight.abs().max()) > 0.095
        assert float(weight.std()) == pytest.approx(0.1 / 3**0.5, rel=0.1)


def test_one_projection_may_serve_both_encoders(small):
    model = create_model(small(use_dual_projection=False), 0)
    assert model.projection.of("a") is model.projection.of("b")
    dual = create_model(small(), 0)
    assert dual.projection.of("a") is dual.projection.proj_A
    assert dual.projection.of("b") is dual.projection.proj_B


@torch.no_grad()
def test_the_controller_stays_in_its_ranges():
    controller = DifferentiableController()
    draw_weights(controller, 0, "controller")
    for scale in (0.0, 1.0, 1e3):
        out = controller(scale * torch.linspace(-1, 1, 8))
        assert list(out) == ["rho", "weight_geodesic", "weight_radial", "beta_A", "beta_B", "tau"]
        assert 0 < float(out["rho"]) < 0.5
        assert float(out["weight_geodesic"]) > 0.1
        assert float(out["weight_radial"]) > 0
        assert min(float(out["beta_A"]), float(out["beta_B"])) > 0.5
        assert 0 < float(out["tau"]) < 1


@torch.no_grad()
def test_the_controllers_ranges_end_where_they_say():
    controller = DifferentiableController()
    controller.net[-1].weight.zero_()
    for bias, ends in ((-60.0, (0, 0.1, 0, 0.5, 0.5, 0)), (60.0, (0.5, 60.1, 60, 60.5, 60.5, 1))):
        controller.net[-1].bias.fill_(bias)
        assert [float(value) for value in controller(torch.ones(8)).values()] == pytest.approx(ends, rel=1e-6, abs=1e-6)


def test_only_level_0_of_the_wide_bands_has_halves(small):
    halves = {bands: Targets.of(small(bands=bands), torch.zeros(4)).half_L.tolist() for bands in ("wide", "even")}
    assert halves == {"wide": [0.42, 0.5, 0.5, 0.5], "even": [0.5, 0.5, 0.5, 0.5]}


def test_a_model_is_rebuilt_from_its_configuration_alone(small):
    config = small(n_projection_layers=2, projection_dropout=0.1, encoder_norm=True, activation="silu", curvature=0.7)
    again = TernaryVAE(**architecture_of(config))
    assert again.config == ArchitectureConfig(**architecture_of(config))
    again.load_state_dict(create_model(config, 1).state_dict(), strict=True)
    metrics = all_metrics(again.eval(), Operations.all(3), "both", 0)
    direct = all_metrics(create_model(config, 1).eval(), Operations.all(3), "b", 0)
    assert metrics == direct
    assert metrics["hierarchy"] == metrics["hierarchy_B"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trits": 1}, "trits"),
        ({"trits": 14}, "trits"),
        ({"encoder_sizes": []}, "encoder_sizes"),
        ({"decoder_sizes": [8, 0]}, "decoder_sizes"),
        ({"encoder_dropout": 1.0}, "encoder_dropout"),
        ({"projection_dropout": -0.1}, "projection_dropout"),
        ({"latent_dim": 0}, "latent_dim"),
    ],
    ids=str,
)
def test_what_makes_no_model_is_refused_by_name(changes, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        TernaryVAE(**changes)


def test_norm_of_float64_radii_has_no_ties_that_float32_makes():
    """Two operations that differ by 1e-9 in the radius stay apart; richness is that of float64."""
    r_N = 0.5 + 1e-9 * np.arange(10)
    assert richness(np.zeros(10, dtype=int), r_N) == pytest.approx(1e-18 * np.var(np.arange(10)) / 10, rel=1e-3)


def test_replaying_a_probe_leaves_every_part_in_its_mode(small):
    """Checkpoints are written while the model is trained, some of its parts in training mode and some not."""
    config = small(encoder_dropout=0.3, projection_dropout=0.3)
    model = create_model(config, 0).eval()
    model.encoder_B.train()
    modes = [part.training for part in model.modules()]
    probe = probe_inputs(3)
    assert probe["input_index"].tolist() == sorted(probe["input_index"].tolist())
    assert {0, 26} <= set(probe["input_index"].tolist())
    outputs = replay_probe(model, probe)
    assert [part.training for part in model.modules()] == modes
    torch.testing.assert_close(outputs, replay_probe(model.eval(), probe), rtol=0, atol=0)
    again = build_model(to_dict(config))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(replay_probe(again, probe), outputs, rtol=0, atol=0)


def test_the_class_has_the_original_study_s_name_as_well():
    assert TernaryVAEV5_11_PartialFreeze is TernaryVAE
