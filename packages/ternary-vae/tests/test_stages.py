"""What each stage trains and leaves alone, and that computing the frozen parts once changes nothing."""

import pytest
import torch

from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.forward import StageForward, noise, set_mode, set_trained
from ternary_vae.losses import StageLoss, first_variances, total
from ternary_vae.model import create_model
from ternary_vae.optimizers import create_optimizer
from ternary_vae.schedules import coverage_rate, learning_rate, schedule_factor
from ternary_vae.stages import stages_of

OPERATIONS = Operations.all(3)
POSITIONS = torch.tensor([3, 0, 26, 9, 1, 18, 5, 12, 6, 2])


def step(config: TrainConfig, updates: int = 0):
    """A model, and its loss's terms and gradients at the first pass of a run's only stage; then so many updates."""
    (stage,) = stages_of(config)
    model = create_model(config, 0)
    trained = set_trained(model, config, stage)
    variance_L = first_variances(model(OPERATIONS.x_NM)["rho_B"].detach(), OPERATIONS.v_N, 3)
    set_mode(model, stage)
    forward = StageForward(model, config, stage, OPERATIONS)
    loss_of = StageLoss(config, stage, variance_L, "cpu", model.controller)
    noises = {v: noise(config, stage.name, v, 4, len(POSITIONS)) for v in stage.sampled}
    batch = OPERATIONS[POSITIONS]
    optimizer = create_optimizer(trained, config, stage)
    parts = loss_of(forward(batch, POSITIONS, noises), batch, 4, 1)
    total(parts).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for _ in range(updates):
        optimizer.step()
        optimizer.zero_grad()
        total(loss_of(forward(batch, POSITIONS, noises), batch, 4, 1)).backward()
    return model, parts, gradients, trained


STAGES = [
    {"stages": "coverage"},
    {"stages": "coverage", "coverage_frozen": ["decoder_A"]},
    {"stages": "coverage", "coverage_frozen": ["encoder_A"]},
    *(
        {"stages": stage, "view": view, "code": code}
        for stage in ("hierarchy", "joint")
        for view in ("a", "b", "both")
        for code in ("mean", "sample")
    ),
    {"stages": "hierarchy", "view": "both", "hierarchy_frozen": ["encoder_A", "encoder_B", "decoder_A"]},
    {"stages": "hierarchy", "view": "both", "use_dual_projection": False},
    {"stages": "hierarchy", "loss": "geodesic", "view": "both", "code": "sample", "use_controller": True},
    {"stages": "hierarchy", "loss": "geodesic", "use_controller": True},
    {"stages": "joint", "loss": "geodesic"},
    {"stages": "hierarchy", "loss": "rich_hierarchy", "view": "a"},
    {"stages": "hierarchy", "encoder_dropout": 0.3, "hierarchy_frozen": ["encoder_A", "encoder_B", "decoder_A"]},
]


def settings(small, changes, **more):
    start = {"start": "x"} if changes["stages"] == "hierarchy" else {}
    return small(dtype="float64", **changes, **start, **more)


@pytest.mark.parametrize("changes", STAGES, ids=str)
def test_computing_frozen_parts_once_changes_nothing(small, changes):
    (_, once, gradients, _), (_, plain, again, _) = (
        step(settings(small, changes, forward=f)) for f in ("restructured", "plain")
    )
    assert once.keys() == plain.keys()
    for name in once:
        torch.testing.assert_close(once[name], plain[name], rtol=1e-10, atol=1e-12)
    assert gradients.keys() == again.keys()
    for name in gradients:
        torch.testing.assert_close(gradients[name], again[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("changes", STAGES, ids=str)
def test_exactly_the_trained_parts_change(small, changes):
    config = settings(small, changes)
    (stage,) = stages_of(config)
    before = create_model(config, 0).state_dict()
    model, _, gradients, trained = step(config, updates=2)
    # Two updates: behind a last layer of zeros, the first one moves nothing.
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == set(trained) == set(gradients)
    frozen = config.frozen(stage.name)
    assert not [name for name in changed if name.partition(".")[0] in frozen]
    assert {name.partition(".")[0] for name in changed} == set(stage.trained)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"stages": "coverage"}, ["decoder_A", "encoder_A"]),
        ({"stages": "coverage", "coverage_frozen": ["decoder_A"]}, ["encoder_A"]),
        ({"stages": "hierarchy"}, ["encoder_B", "projection"]),
        ({"stages": "hierarchy", "view": "a"}, ["projection"]),
        ({"stages": "hierarchy", "view": "a", "hierarchy_frozen": ["decoder_A"]}, ["encoder_A", "projection"]),
        ({"stages": "joint"}, ["decoder_A", "encoder_A", "encoder_B", "projection"]),
        ({"stages": "joint", "view": "a"}, ["decoder_A", "encoder_A", "projection"]),
        ({"stages": "joint", "loss": "geodesic", "use_controller": True}, ["controller", "decoder_A", "encoder_A", "encoder_B", "projection"]),
        (
            {"stages": "hierarchy", "use_controller": True, "hierarchy_frozen": ["encoder_A", "decoder_A", "controller"]},
            ["encoder_B", "projection"],
        ),
        # What is not frozen and carries coverage goes on being trained for it.
        ({"stages": "hierarchy", "hierarchy_frozen": []}, ["decoder_A", "encoder_A", "encoder_B", "projection"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_stage_trains_what_its_loss_reaches_and_is_not_frozen(small, changes, parts):
    assert list(stages_of(settings(small, changes))[0].trained) == parts


def test_only_what_a_loss_looks_at_is_trained(small):
    """Losses of radii never look at directions; a mean code has no log variance; a view has one projection."""
    config = settings(small, {"stages": "hierarchy"})
    names = set(set_trained(create_model(config, 0), config, *stages_of(config)))
    assert all(".radius_net." in name and ".proj_B." in name for name in names if name.startswith("projection"))
    assert not [name for name in names if "fc_logvar" in name]
    sampled = settings(small, {"stages": "hierarchy", "code": "sample", "loss": "geodesic"})
    names = set(set_trained(create_model(sampled, 0), sampled, *stages_of(sampled)))
    assert {"encoder_B.fc_logvar.weight", "projection.proj_B.direction_net.0.weight"} <= names


def test_the_terms_are_those_of_the_stage(small):
    terms = {
        "coverage": {"coverage", "kl_a"},
        "hierarchy": {"hierarchy", "richness", "separation"},
        "joint": {"coverage", "kl_a", "hierarchy", "richness", "separation"},
    }
    for stage, expected in terms.items():
        assert set(step(settings(small, {"stages": stage}))[1]) == expected
    both = step(settings(small, {"stages": "hierarchy", "view": "both", "code": "sample"}))[1]
    # Encoder A is frozen, so its divergence is a constant.
    assert set(both) == {"kl_b", *(f"{t}_{v}" for t in ("hierarchy", "richness", "separation") for v in "ab")}
    geodesic = step(settings(small, {"stages": "hierarchy", "loss": "geodesic"}))[1]
    assert set(geodesic) == {"geodesic", "hierarchy", "separation"}


@pytest.mark.parametrize(
    ("field", "term"),
    [("coverage_weight", "coverage"), ("kl_weight", "kl_a"), ("hierarchy_weight", "hierarchy"), ("richness_weight", "richness"), ("separation_weight", "separation")],
)  # fmt: skip
def test_every_weight_scales_its_own_term(small, field, term):
    config = settings(small, {"stages": "joint"})
    once = step(config)[1]
    thrice = step(settings(small, {"stages": "joint"}, **{field: 3 * getattr(config, field)}))[1]
    for name in once:
        ratio = float((thrice[name] / once[name]).detach())
        assert ratio == pytest.approx(3 if name == term else 1, rel=1e-12), name


def test_the_kl_weight_rises_over_its_epochs(small):
    config = settings(small, {"stages": "coverage"}, kl_warmup_epochs=4)
    loss_of = StageLoss(config, *stages_of(config), torch.zeros(4).double(), "cpu", None)
    rows = {"ce": torch.ones(2), "kl_a": torch.ones(2, 4)}
    by_epoch = [float(loss_of(rows, OPERATIONS[POSITIONS[:2]], 0, epoch)["kl_a"]) for epoch in range(6)]
    assert by_epoch == pytest.approx([4e-3 * share for share in (0.25, 0.5, 0.75, 1, 1, 1)])


def test_tau_rises_over_most_of_the_epochs(small):
    values = []
    for epoch in (0, 3, 6, 9):
        config = settings(small, {"stages": "hierarchy", "loss": "geodesic"}, epochs=10)
        model = create_model(config, 0)
        forward = StageForward(model, config, *stages_of(config), OPERATIONS)
        batch = OPERATIONS[POSITIONS]
        rows = forward(batch, POSITIONS, {})
        loss_of = StageLoss(config, *stages_of(config), torch.zeros(4).double(), "cpu", None)
        values.append(float(loss_of(rows, batch, 0, epoch)["geodesic"].detach()))
    assert [value / values[-1] for value in values] == pytest.approx([1 / 7, 4 / 7, 1, 1])


def test_noise_is_a_function_of_seed_stage_view_and_step(small):
    config = small()
    one = noise(config, "coverage", "a", 3, 500)
    torch.rand(3)
    assert torch.equal(one, noise(config, "coverage", "a", 3, 500))
    others = [("hierarchy", "a", 3), ("coverage", "b", 3), ("coverage", "a", 4)]
    assert not any(torch.equal(one, noise(config, *other, 500)) for other in others)
    assert not torch.equal(one, noise(small(seed=4), "coverage", "a", 3, 500))
    assert one.dtype == torch.float64
    assert float(one.mean()) == pytest.approx(0, abs=0.1)
    assert float(one.std()) == pytest.approx(1, abs=0.1)


def test_what_a_stage_leaves_alone_has_no_dropout(small):
    config = settings(small, {"stages": "hierarchy"}, encoder_dropout=0.5)
    model = create_model(config, 0)
    set_mode(model, *stages_of(config))
    assert not model.encoder_A.training
    assert not model.decoder_A.training
    assert model.encoder_B.training
    assert model.projection.training


def test_schedules_are_their_formulas(small):
    constant, cosine = small(scheduler="constant", epochs=10), small(scheduler="cosine", epochs=10)
    stepped = small(scheduler="step", step_epochs=4, step_gamma=0.1, epochs=10)
    assert [schedule_factor(constant, e) for e in (0, 5, 10)] == [1, 1, 1]
    assert [schedule_factor(cosine, e) for e in (0, 5, 10, 12)] == pytest.approx([1, 0.5, 0, 0], abs=1e-15)
    assert [schedule_factor(stepped, e) for e in (0, 3.9, 4, 9)] == pytest.approx([1, 1, 0.1, 0.01])
    warm = small(scheduler="constant", warmup_epochs=4)
    factors = [schedule_factor(warm, e / 8) for e in range(40)]
    assert factors == sorted(factors)
    assert factors[0] > 0
    assert factors[8] == pytest.approx(1 / 4, abs=0.02)
    assert factors[32:] == [1] * 8
    rates = [coverage_rate(constant, k, 5) for k in (0, 49, 99, 500)]
    assert rates == pytest.approx([1e-4, 5e-3, 1e-2, 1e-2])
    assert learning_rate(cosine, 25, 5) == pytest.approx(5e-3)


def test_encoders_have_their_own_learning_rates(small):
    config = settings(small, {"stages": "joint"}, encoder_a_lr=0.05, encoder_b_lr=0.3)
    (joint,) = stages_of(config)
    trained = set_trained(create_model(config, 0), config, joint)
    factors = {}
    for group in create_optimizer(trained, config, joint).param_groups:
        for parameter in group["params"]:
            name = next(n for n, p in trained.items() if p is parameter)
            factors.setdefault(name.partition(".")[0], set()).add(group["factor"])
    assert factors == {"encoder_A": {0.05}, "encoder_B": {0.3}, "decoder_A": {1.0}, "projection": {1.0}}
    config = settings(small, {"stages": "coverage"}, encoder_a_lr=0.05, encoder_b_lr=0.3)
    (coverage,) = stages_of(config)
    in_coverage = create_optimizer(set_trained(create_model(config, 0), config, coverage), config, coverage)
    assert {group["factor"] for group in in_coverage.param_groups} == {1.0}


def test_a_run_has_the_stages_that_it_asks_for(small):
    coverage, hierarchy = stages_of(small(coverage_epochs=7, epochs=9, lr=0.5, coverage_lr=0.25))
    assert (coverage.name, coverage.epochs, coverage.rate_field, coverage.is_last) == (
        "coverage",
        7,
        "coverage_lr",
        False,
    )
    assert (hierarchy.name, hierarchy.epochs, hierarchy.rate_field, hierarchy.is_last) == ("hierarchy", 9, "lr", True)
    assert (coverage.rate(500, 5), hierarchy.rate(0, 5)) == (0.25, 0.5)
    (joint,) = stages_of(small(stages="joint", view="both", code="sample", coverage_code="mean"))
    assert (joint.views, joint.sampled, joint.decodes, joint.is_last) == (("a", "b"), ("a", "b"), True, True)
    (one_view,) = stages_of(small(stages="joint", view="b", code="sample", coverage_code="mean"))
    assert (one_view.views, one_view.sampled) == (("b",), ("b",)), "what is decoded is the mean, as was asked"
    (alone,) = stages_of(small(stages="hierarchy", start="x", coverage_weight=0.0, hierarchy_frozen=["encoder_B"]))
    assert not alone.decodes, "nothing weighs the reconstruction"
