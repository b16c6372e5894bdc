"""Files with the original study's sections and keys, the jobs that they make, and mistakes."""

from importlib import resources
from pathlib import Path

import pytest

from polytope_hsae.config import ABLATIONS, ARMS, FIXED, JOBS, OF_STUDY, PATHS, REFUSED, StudyConfig, leaves, with_flags
from polytope_hsae.plan import phase1, phase2, phase3, phase4
from studycore.configuration import build, check_types, read_yaml
from studycore.errors import UserError

CONFIGS = sorted((Path(str(resources.files("polytope_hsae"))) / "configs").glob("*.yaml"))
ORIGINAL = {"v2-focused", "v2-focused-pythia", "neurips-mi-lowcompute"}


def study(**sections):
    return build(StudyConfig, check_types(StudyConfig, sections))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_makes_its_jobs(path):
    config = study(**read_yaml(path))
    jobs = phase4(config)
    assert len(jobs) == 2 + 2 * len(config.arms) * config.seeds
    for job in jobs:
        assert job.shared


def test_the_configurations_of_the_original_study_are_there():
    assert {path.stem for path in CONFIGS} >= ORIGINAL


def test_every_key_is_read_by_a_job():
    fields = {name for cls in JOBS.values() for name in cls.__dataclass_fields__}
    assert set(PATHS.values()) <= fields
    # What no file gives comes from the plan: which arm.
    assert fields - set(PATHS.values()) == {"arm"}
    assert not set(PATHS) & (set(REFUSED) | set(FIXED) | set(OF_STUDY))


def test_phases_build_on_one_another():
    config = study(training={"arms": ["topk", "random_teacher"]}, seeds=2)
    names = [[job.name for job in phase(config)] for phase in (phase1, phase2, phase3, phase4)]
    assert names[0] == ["geometry"]
    assert names[1] == ["geometry", "activations", "random_s0", "topk_s0", "random_s1", "topk_s1"]
    assert names[2][6:] == ["teacher_s0", "random_teacher_s0", "teacher_s1", "random_teacher_s1"]
    assert len(names[3]) == 10 + 8
    evaluation = next(job for job in phase4(config) if job.name == "evaluate_teacher_s1")
    assert evaluation.needs == ("geometry", "activations", "teacher_s1", "teacher_s0")


def test_values_reach_their_jobs():
    config = study(hsae={"m_top": 24}, training={"teacher_init": {"stage_A": {"steps": 7}}}, model={"name": "x"}, run={"seed": 5})  # fmt: skip
    assert config.job("train", arm="teacher", seed=5).m_top == 24
    assert config.job("train", arm="teacher", seed=5).stage_a_steps == 7
    assert config.job("geometry").model == "x" == config.job("activations").model
    assert phase2(config)[2].config.seed == 5


def test_ablations_are_arms():
    arms = study(ablate=["euclidean_vs_causal", "topk_1_vs_2"]).arms
    assert arms == ["random", "teacher", "euclidean", "top2"]
    assert set(ABLATIONS.values()) <= set(ARMS)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"hsae": {"m_tpo": 3}}, r"hsae.m_tpo: is no key here; did you mean 'hsae.m_top'\?"),
        ({"data": {"qqqqqqqqqqqqqqqqqqqqq": 3}}, "data.q+: is no key here; the README's table lists those there are"),
        (
            {"model": {"name": "synthetic-tree"}, "concepts": {"parents": 7}},
            "concepts.parents: the planted tree has no such thing",
        ),
        ({"model": {"name": "synthetic-tree", "dtype": "bf16"}}, "model.dtype: the planted tree has no such thing"),
        ({"synthetic": {"parents": 7}}, "synthetic.parents: is read with model.name synthetic-tree alone"),
        ({"run": {"budget_hours": 30}}, "run.budget_hours: is no key here: --dry-run tells the time"),
        ({"hsae": {"router_temp": {"start": 1.5}}}, "hsae.router_temp: is no key here: codes keep their magnitude"),
        (
            {"model": {"layers_probe": ["first"]}},
            r"model.layers_probe: \['first'\] does not fit; it can be \['last'\] alone",
        ),
        ({"ablate": ["nothing"]}, "ablate: 'nothing' is none of euclidean_vs_causal"),
        ({"training": {"arms": ["best"]}}, "training.arms: 'best' is none of random"),
    ],
)
def test_keys_that_do_not_fit(sections, sentence):
    with pytest.raises(UserError, match=sentence):
        study(**sections)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"hsae": {"m_top": "many"}}, "hsae: m_top: many does not fit"),
        ({"hsae": {"m_top": 4, "topk_parent": 5}}, "topk_parent: 5 is more than the 4 parents"),
        ({"concepts": {"split": [0.5, 0.5]}}, "split: .* does not fit; give three shares"),
        ({"hsae": {"biorth_sample": 1}}, "biorth_sample: 1 does not fit"),
        (
            {"hsae": {"causal_ortho_lambda": 0}, "ablate": ["drop_causal_ortho"]},
            "causal_ortho_lambda: 0 makes the arm no_causal_ortho the teacher itself",
        ),
        ({"hsae": {"topk_child": 2}, "ablate": ["topk_1_vs_2"]}, "topk_child: 2 makes the arm top2 the teacher itself"),
        (
            {"hsae": {"projectors_init": "random"}, "ablate": ["randomize_projectors"]},
            "projectors_init: random makes the arm random_projectors the teacher itself",
        ),
    ],
)
def test_values_that_do_not_fit(sections, sentence):
    with pytest.raises(UserError, match=sentence):
        phase3(study(**sections))


def test_flags_of_a_training_go_where_the_file_has_them():
    values = with_flags({"hsae": {"m_top": 8}}, {"seeds": 2}, {"m_top": 16, "stage_a_steps": 3})
    assert values == {"hsae": {"m_top": 16}, "seeds": 2, "training": {"teacher_init": {"stage_A": {"steps": 3}}}}
    with pytest.raises(UserError, match="--arm: a phase trains several"):
        with_flags({"seeds": 1}, {}, {"arm": "teacher"})


def test_leaves_are_paths():
    assert dict(leaves({"a": {"b": {"c": 1}}, "d": 2})) == {"a.b.c": 1, "d": 2}
