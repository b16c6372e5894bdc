"""What settings allow together, at the edges: each rule over several fields, with the field that its sentence begins with."""

import pytest

from ternary_vae.config import BOUNDARY, ArchitectureConfig, SweepConfig, TrainConfig, largest_max_radius

START = {"stages": "hierarchy", "start": "x"}
ALL_BUT_CONTROLLER = ["encoder_A", "encoder_B", "decoder_A", "projection"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"trits": 14}, "trits"),
        ({"trits": 1}, "trits"),
        ({"encoder_sizes": []}, "encoder_sizes"),
        ({"decoder_sizes": [4, 0]}, "decoder_sizes"),
        ({"max_radius": 0.0}, "max_radius"),
        ({"max_radius": 1 - BOUNDARY}, "max_radius"),
        ({"max_radius": 0.7072, "curvature": 2.0}, "max_radius"),
        ({"trits": 3, "train_fraction": 1.4 / 27}, "train_fraction"),
        ({"inner_radius": -0.01}, "inner_radius, outer_radius"),
        ({"inner_radius": 0.9, "outer_radius": 0.9}, "inner_radius, outer_radius"),
        ({"outer_radius": 0.951}, "inner_radius, outer_radius"),
        ({"coverage_frozen": ["encoder_C"]}, "coverage_frozen"),
        ({"hierarchy_frozen": ["decoder_B"]}, "hierarchy_frozen"),
        ({"coverage_frozen": ALL_BUT_CONTROLLER}, "coverage_frozen"),
        ({"hierarchy_frozen": ALL_BUT_CONTROLLER}, "hierarchy_frozen"),
        ({"hierarchy_frozen": ["projection"]}, "hierarchy_frozen"),
        ({"use_controller": True}, "use_controller"),
        ({"loss": "geodesic", "hierarchy_weight": 4.0}, "hierarchy_weight"),
        ({"loss": "geodesic", "richness_weight": 4.0}, "richness_weight"),
        ({"loss": "geodesic", "separation_weight": 4.0}, "separation_weight"),
        ({"stages": "joint", "coverage_frozen": ["encoder_B"]}, "coverage_frozen, hierarchy_frozen"),
        ({"stages": "joint", "hierarchy_frozen": []}, "coverage_frozen, hierarchy_frozen"),
        ({"stages": "hierarchy"}, "stages"),
        ({"start_projections": "drawn"}, "start_projections"),
        ({"early_stopping_patience": 0}, "early_stopping_patience"),
        ({"batch_size": 1}, "batch_size"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_its_field(values, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        TrainConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"trits": 13},
        {"max_radius": 0.9999},
        {"max_radius": 0.707, "curvature": 2.0},
        {"trits": 3, "train_fraction": 1.6 / 27},
        {"inner_radius": 0.0, "outer_radius": 0.95},
        {"coverage_frozen": ["encoder_A", "encoder_B", "decoder_A"]},
        {"use_controller": True, "loss": "geodesic"},
        {"use_controller": True, "stages": "coverage"},
        {"use_controller": True, "hierarchy_frozen": ["controller"]},
        {"stages": "coverage", "hierarchy_frozen": ["projection"]},
        {"loss": "geodesic", "radial_weight": 4.0, "rank_loss_weight": 2.0},
        {"stages": "joint"},
        {**START, "start_projections": "drawn"},
        {**START, "hierarchy_frozen": []},
    ],
    ids=str,
)
def test_what_goes_together_is_taken(values):
    config = TrainConfig(**values)
    assert all(getattr(config, name) == value for name, value in values.items())


def test_the_largest_radius_is_a_little_inside_the_ball():
    assert [largest_max_radius(c) for c in (1.0, 4.0)] == pytest.approx([1 - 1e-5, (1 - 1e-5) / 2])
    assert ArchitectureConfig(curvature=4.0, max_radius=0.49999).max_radius == 0.49999
    with pytest.raises(ValueError, match=r"whose radius is 0\.5; give more than 0 and less than 0\.499995"):
        ArchitectureConfig(curvature=4.0, max_radius=0.5)


def test_the_stages_of_a_run_and_what_each_leaves_alone():
    both = TrainConfig(coverage_frozen=["encoder_B"], hierarchy_frozen=["encoder_A"])
    assert both.stage_names == ("coverage", "hierarchy")
    assert [both.frozen(name) for name in ("coverage", "hierarchy", "joint")] == [["encoder_B"], ["encoder_A"], []]
    assert TrainConfig(stages="joint").stage_names == ("joint",)


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        ({}, True), ({"stages": "joint"}, True), (START, True), ({"stages": "coverage"}, False),
        ({"stages": "coverage", "start": "x"}, True),
        ({"stages": "coverage", "start": "x", "start_projections": "drawn"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_radii_mean_something_where_a_stage_or_the_start_has_trained_them(values, ordered):
    assert TrainConfig(**values).orders_radii is ordered


def test_a_sweep_needs_something_to_run():
    with pytest.raises(ValueError, match=r"^phases: "):
        SweepConfig()
    assert SweepConfig(phases={"a": {}}).seeds == SweepConfig(from_scratch={"a": {}}).seeds == 5
