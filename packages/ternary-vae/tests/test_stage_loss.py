"""Which rows, weights and draws each term of a stage's loss is made of, and what the controller sees."""

import pytest
import torch

from studycore.streams import generator
from ternary_vae.bands import Targets
from ternary_vae.data import Operations
from ternary_vae.losses import RADIAL, StageLoss, Weights, geodesic, kl_divergence
from ternary_vae.stages import stages_of

OPERATIONS = Operations.all(3)
BATCH = OPERATIONS[torch.tensor([3, 0, 26, 9, 1, 18])]
VARIANCE_L = torch.tensor([0.02, 0.01, 0.03, 0.0], dtype=torch.float64)
SAID = {"rho": 0.2, "weight_geodesic": 1.7, "weight_radial": 0.3, "beta_A": 0.6, "beta_B": 0.9, "tau": 0.4}


class Controller(torch.nn.Module):
    """Keeps what it is given, and says what is planted."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, statistics_8):
        self.seen.append(statistics_8)
        return {name: torch.tensor(value) for name, value in SAID.items()}


def made_up(seed=0):
    """Rows of a batch of six, every one with numbers of its own."""
    draw = torch.Generator().manual_seed(seed)

    def rows(*shape):
        return torch.rand(6, *shape, generator=draw, dtype=torch.float64).requires_grad_()

    named = {"ce": rows(), "kl_a": rows(4), "kl_b": rows(4)}
    for view in "ab":
        named |= {f"rho_{view}": rows(), f"norm_{view}": rows(), f"z_{view}": rows(4)}
    return named


def loss_of(config, controller=None, number=-1):
    return StageLoss(config, stages_of(config)[number], VARIANCE_L, "cpu", controller)


ALL = {
    "stages": "joint", "view": "both", "code": "sample", "loss": "geodesic", "use_controller": True, "epochs": 40,
    "coverage_weight": 1.3, "kl_weight": 0.5, "free_bits": 0.45, "radial_weight": 2.5, "rank_loss_weight": 0.7,
}  # fmt: skip


@pytest.mark.parametrize("radius", ["hyperbolic", "euclidean"])
def test_every_term_is_made_of_its_own_rows_and_the_controllers_own_weight(small, radius):
    config, rows = small(**ALL, radius=radius), made_up()
    terms = loss_of(config, Controller())(rows, BATCH, 5, 30)
    targets = Targets.of(config, VARIANCE_L)
    pairs = torch.randint(6, (2, config.n_pairs), generator=generator(config.seed, "pairs", 5))
    wanted = {
        "coverage": 1.3 * rows["ce"].mean(),
        "kl_a": 0.5 * 0.6 * kl_divergence(rows["kl_a"], 0.45),
        "kl_b": 0.5 * 0.9 * kl_divergence(rows["kl_b"], 0.45),
    }
    for view in "ab":
        r_N = rows[f"rho_{view}" if radius == "hyperbolic" else f"norm_{view}"]
        parts = geodesic(
            rows[f"z_{view}"], r_N, BATCH.v_N, BATCH.index_N, pairs, targets, config, 0.4, (1.7, 2.5 * 0.3, 0.7)
        )
        wanted |= {f"{name}_{view}": value for name, value in parts.items()}
    assert list(terms) == list(wanted)
    assert {k: float(v.detach()) for k, v in terms.items()} == pytest.approx(
        {k: float(v.detach()) for k, v in wanted.items()}, rel=1e-6
    )


@pytest.mark.parametrize("loss", RADIAL)
@pytest.mark.parametrize("radius", ["hyperbolic", "euclidean"])
def test_losses_of_radii_get_the_radius_that_is_asked_for_and_their_own_weights(small, loss, radius):
    changes = {"hierarchy_weight": 1.1, "richness_weight": 1.2, "separation_weight": 1.3}
    config, rows = small(stages="hierarchy", start="x", view="a", loss=loss, radius=radius, **changes), made_up()
    r_N = rows["rho_a" if radius == "hyperbolic" else "norm_a"]
    wanted = RADIAL[loss](r_N, BATCH.v_N, BATCH.place_N, Targets.of(config, VARIANCE_L), Weights(1.1, 1.2, 1.3))
    terms = loss_of(config)(rows, BATCH, 0, 0)
    assert terms.keys() == wanted.keys()
    assert all(torch.equal(terms[name], wanted[name]) for name in wanted)


def test_pairs_are_other_ones_in_every_update_and_for_every_seed(small):
    rows = made_up()
    changes = {"stages": "hierarchy", "start": "x", "loss": "geodesic", "kl_warmup_epochs": 0}
    one, other = loss_of(small(**changes)), loss_of(small(**changes, seed=4))
    values = [float(loss(rows, BATCH, step, 9)["separation"].detach()) for loss in (one, other) for step in (0, 1, 2)]
    assert len(set(values)) == 6
    assert values[1] == float(one(rows, BATCH, 1, 9)["separation"].detach()), "and the same when it is made again"


def statistics(config, number=-1):
    controller = Controller()
    rows = made_up()
    loss_of(config, controller, number)(rows, BATCH, 0, 0)
    (seen,) = controller.seen
    return rows, seen


def test_the_controller_sees_the_batch_and_no_gradient_flows_through_what_it_sees(small):
    config = small(**ALL, radius="euclidean")
    rows, seen = statistics(config)
    wanted = [
        rows["rho_a"].mean(), rows["rho_a"].std(), rows["kl_a"].sum(1).mean(),
        rows["rho_b"].mean(), rows["rho_b"].std(), rows["kl_b"].sum(1).mean(), rows["ce"].mean(), 1.0,
    ]  # fmt: skip
    assert seen.tolist() == pytest.approx([float(torch.as_tensor(value).detach()) for value in wanted])
    assert not seen.requires_grad

    class Through(Controller):
        def forward(self, statistics_8):
            return {name: value + statistics_8.sum() for name, value in super().forward(statistics_8).items()}

    weighed = loss_of(config, Through())(rows, BATCH, 0, 0)["kl_a"]
    assert torch.autograd.grad(weighed, rows["ce"], allow_unused=True) == (None,)


def test_the_controller_sees_zeros_for_what_the_stage_has_not(small):
    """Also where the plain forward pass gives more rows than the stage needs."""
    changes = {**ALL, "stages": "hierarchy", "start": "x", "view": "b", "code": "mean"}
    controller, rows = Controller(), made_up()
    del rows["kl_a"]
    loss_of(small(**changes), controller)(rows, BATCH, 0, 0)
    rho, kl = rows["rho_b"], rows["kl_b"]
    wanted = [0, 0, 0, rho.mean(), rho.std(), kl.sum(1).mean(), 0, 1]
    assert controller.seen[0].tolist() == pytest.approx([float(torch.as_tensor(value).detach()) for value in wanted])


def test_a_stage_without_radii_asks_no_controller(small):
    controller = Controller()
    config = small(**{**ALL, "stages": "coverage_hierarchy", "hierarchy_frozen": []})
    terms = loss_of(config, controller, 0)(made_up(), BATCH, 0, 30)
    assert controller.seen == [] and set(terms) == {"coverage", "kl_a"}


def test_without_a_controller_the_weights_are_those_of_the_configuration(small):
    config, rows = small(**{**ALL, "use_controller": False, "epochs": 100}), made_up()
    terms = loss_of(config)(rows, BATCH, 2, 34)
    pairs = torch.randint(6, (2, config.n_pairs), generator=generator(config.seed, "pairs", 2))
    wanted = geodesic(
        rows["z_a"], rows["rho_a"], BATCH.v_N, BATCH.index_N, pairs, Targets.of(config, VARIANCE_L), config, 0.5, (1.0, 2.5, 0.7)
    )  # fmt: skip
    assert {name: float(terms[f"{name}_a"].detach()) for name in wanted} == pytest.approx(
        {name: float(value.detach()) for name, value in wanted.items()}
    )


def test_the_divergence_of_a_code_that_is_not_trained_is_left_out(small):
    config = small(**{**ALL, "stages": "hierarchy", "start": "x", "hierarchy_frozen": ["encoder_A", "decoder_A"]})
    assert {"kl_b"} == {name for name in loss_of(config, Controller())(made_up(), BATCH, 0, 0) if name[:2] == "kl"}


@pytest.mark.parametrize(("frozen", "decodes"), [(["encoder_A", "decoder_A"], False), (["encoder_A"], True)])
def test_the_controller_sees_the_reconstruction_where_a_stage_of_the_hierarchy_decodes_too(small, frozen, decodes):
    rows, seen = statistics(small(**{**ALL, "stages": "hierarchy", "start": "x", "hierarchy_frozen": frozen}))
    assert float(seen[6]) == pytest.approx(float(rows["ce"].detach().mean()) if decodes else 0)
