"""The command on a planted tree: phases, what is reused, reports, figures, claims."""

from pathlib import Path

import pytest
import yaml

from polytope_hsae.claims import claims
from polytope_hsae.cli import STUDY, main
from polytope_hsae.config import StudyConfig
from studycore.claims import judge_all
from studycore.files import read_json
from studycore.testing.runs import refused

MINI = {
    "model": {"name": "synthetic-tree"},
    "synthetic": {"parents": 4, "children": 3, "dim": 24, "words": 14},
    "data": {"token_budget": 3000},
    "hsae": {"m_top": 8, "topk_parent": 2, "subspace_dim": 3, "m_low": 4},
    "training": {"arms": ["random_teacher"], "lr": 5e-3, "batch_size_acts": 128, "val_every": 5, "val_size": 300,
                 "teacher_init": {"stage_A": {"steps": 4}, "stage_B": {"steps": 8}}},
    "eval": {"ce_size": 200, "test_size": 450, "validation": {"n_shuffles": 19, "contexts": 8}},
    "seeds": 2,
}  # fmt: skip
FLAGS = ["--device", "cpu", "--threads", "1", "--processes", "1"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mini.yaml").write_text(yaml.safe_dump(MINI))
    return tmp_path


def test_all_phases_then_one_that_finds_them_done(place, capsys):
    assert main(["all", "--config", "mini.yaml", *FLAGS, "--output-dir", "whole"]) == 0
    said = capsys.readouterr().out
    assert "14 of 14 runs" in said
    text = (place / "whole" / "report.md").read_text()
    assert "Concepts do form a hierarchy" in text
    assert "Held-out words project on their concept's vector at" in text
    results = read_json(place / "whole" / "results.json")
    verdicts = {claim["id"]: claim["verdict"] for claim in results["claims"]}
    untested = [claim for claim in results["claims"] if claim["verdict"] == "not run"]
    assert [claim["id"] for claim in untested] == ["median_angle"], untested
    assert verdicts["ratio_invariance"] == "supported"
    assert verdicts["held_out_projection"] == "supported"
    assert "nested words give 90 by algebra" in untested[0]["why"]
    assert all(claim["registered"] for claim in results["claims"])
    figures = {path.name for path in (place / "whole" / "figures").iterdir()}
    assert figures == {
        "arms.svg", "purity_leakage.svg", "pairs.svg", "angles.svg", "polytope.svg", "heatmap.svg", "steering.svg",
    }  # fmt: skip
    page = (place / "whole" / "report.html").read_text()
    opened, folded = page.split("<details>")[0], page.count(": the numbers</summary>")
    assert folded == 4, "arms, labels, pairs and geometry lie folded under their figures"
    assert "<svg" in opened, "the first screen has the figure, no table"
    assert "Arms</h2>" not in page
    assert "<details>" in (place / "whole" / "feature_tree.html").read_text()
    assert 'href="feature_tree.html"' in page
    # Phase 2 finds all that it needs.
    assert main(["phase2", "--config", "mini.yaml", *FLAGS, "--output-dir", "second"]) == 0
    said = capsys.readouterr().out
    assert said.count("was done before") == 4
    claims_of = read_json(place / "second" / "results.json")["claims"]
    assert {claim["id"] for claim in claims_of} == {claim.id for claim in claims("phase2", StudyConfig())}
    assert main(["report", "second"]) == 0


def test_mistakes_are_one_sentence(place, capsys):
    Path("odd.yaml").write_text("hsae: {m_tpo: 3}\n")
    for argv, sentence in (
        (["all", "--config", "odd.yaml"], "hsae.m_tpo: is no key here"),
        (["phase1", "--config", "mini.yaml", "--m-top", "many"], "m_top: many does not fit"),
        (["phase3", "--config", "mini.yaml", "--arm", "teacher"], "--arm: a phase trains several"),
    ):
        assert sentence in refused(main, argv, capsys)


def test_a_dry_run_says_what_would_run(place, capsys):
    assert main(["phase3", "--config", "mini.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "0: geometry" in said
    assert "teacher_s0, after geometry, activations" in said
    assert "all phases: 3 arms x 2 seeds x 12 steps: about" in said
    assert "of memory each" in said
    assert not (place / "runs").exists()
    # Once a training's needs are there, its own steps are timed.
    assert main(["phase1", "--config", "mini.yaml", *FLAGS, "--output-dir", "first"]) == 0
    assert (
        main(["phase2", "--config", "mini.yaml", *FLAGS, "--experiment", "activations", "--output-dir", "second"]) == 0
    )
    capsys.readouterr()
    assert main(["phase3", "--config", "mini.yaml", *FLAGS, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "random_s0: B: 12 steps of" in said
    assert "6 runs, 1 at a time: about" in said


def test_a_dry_run_times_the_update_that_the_training_makes(place, capsys, monkeypatch):
    """Three times for each shape of an autoencoder, on a whole batch, in the last stage."""
    import polytope_hsae.estimate as estimate
    import polytope_hsae.training as training

    assert estimate.update is training.update
    made, real = [], estimate.update

    def update(learner, config, stage, step, x_BD):
        made.append((learner.model.config.kind, stage.name, tuple(x_BD.shape)))
        return real(learner, config, stage, step, x_BD)

    monkeypatch.setattr(estimate, "update", update)
    config = MINI | {"training": MINI["training"] | {"arms": ["topk", "random_teacher"]}}
    Path("two.yaml").write_text(yaml.safe_dump(config))
    assert main(["phase3", "--config", "two.yaml", "--device", "cpu", "--dry-run"]) == 0
    assert "4 arms x 2 seeds x 12 steps" in capsys.readouterr().out
    assert made == [(kind, "B", (128, 24)) for kind in ("hierarchical", "topk") for _ in range(3)]


def test_a_dry_run_says_how_much_room_a_models_shards_take_before_it_is_here():
    from polytope_hsae.estimate import estimate

    study = StudyConfig(model={"name": "some/model-that-is-not-here"}, data={"token_budget": 8_000_000})
    (said,) = estimate(study, "cpu")
    assert "8,000,000 activations take 30.5 GiB under runs/ for every 1,024 numbers of its width" in said


def test_claims_can_be_supported_refuted_and_not_run():
    import pandas as pd

    arms = ["random_staged", "random_teacher", "frozen_random", "euclidean"]
    whole = claims("all", StudyConfig(training={"arms": arms}))
    assert len({claim.id for claim in whole}) == len(whole) == 28
    rows = [{"run": f"{arm}{seed}", "arm": arm, "seed": seed, "purity": base + seed / 1000, "purity_reference": 0.9, "leakage": 0.2 if arm == "teacher" else 0.4}
            for arm, base in (("teacher", 0.9), ("random", 0.5), ("random_teacher", 0.95)) for seed in range(3)]  # fmt: skip
    found = {claim["id"]: claim["verdict"] for claim in judge_all(whole, pd.DataFrame(rows), [])}
    assert found["purity"] == "supported"
    assert found["leakage"] == "supported"
    assert found["purity_beside_random_teacher"] == "refuted"
    assert found["purity_beside_frozen_random"] == "not run"
    assert found["held_out_projection"] == "not run"


def test_the_declaration_names_what_exists():
    from studycore.study import load

    for name in (STUDY.claims, STUDY.columns, STUDY.report, STUDY.doctor):
        assert callable(load(name))
    for action in STUDY.verbs.values():
        assert callable(load(getattr(action, "train", "") or action.plan))
