"""The original study's JSON files: both forms are read; summary keys; the three scenarios."""

import json

import pytest

from retrofit.cli import main
from retrofit.legacy.original_json import OriginalResult, read_folder, read_result, summarise
from retrofit.legacy.scenarios import scenario
from studycore.errors import UserError

README_FORM = {
    "method": "geometry",
    "initial": {"cond": 4738, "ppl": 10.9, "loss": 2.39},
    "final": {"cond": 2500, "ppl": 9.2, "loss": 2.22},
    "trajectory": {"steps": [0, 100], "conditioning": [4738, 4200], "perplexity": [10.9, 10.5], "loss": [2.39, 2.35]},
}
WRITTEN_FORM = {
    "method": "standard",
    "initial": {"cond": 4738.0, "val_ppl": 10.9, "train_ppl": 9.9, "val_loss": 2.39, "train_loss": 2.29},
    "final": {"cond": 4600.0, "val_ppl": 10.7, "train_ppl": 9.5, "val_loss": 2.37, "train_loss": 2.25},
    "trajectory": {
        "steps": [0, 100], "conditioning": [4738.0, 4700.0], "val_perplexity": [10.9, 10.8],
        "train_perplexity": [9.9, 9.7], "val_loss": [2.39, 2.38], "train_loss": [2.29, 2.27],
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "geometry.json").write_text(json.dumps(README_FORM))
    (tmp_path / "standard.json").write_text(json.dumps(WRITTEN_FORM))
    return tmp_path


def test_both_forms_are_read(folder):
    results = read_folder(folder)
    assert results["geometry"].initial == {"cond": 4738, "ppl": 10.9, "loss": 2.39}
    assert results["geometry"].perplexity == [10.9, 10.5]
    assert results["standard"].final == {"cond": 4600, "ppl": 10.7, "loss": 2.37}
    assert results["standard"].perplexity == [10.9, 10.8]


def test_summary_has_the_original_keys_and_arithmetic(folder):
    summary = summarise(read_folder(folder))
    assert set(summary) == {"methods", "comparison"}
    conditioning = summary["methods"]["geometry"]["conditioning"]
    assert conditioning == pytest.approx(
        {"initial": 4738, "final": 2500, "improvement": 2238, "pct_improvement": 100 * 2238 / 4738}
    )
    versus = summary["comparison"]["geometry_vs_standard"]
    assert versus["conditioning_ratio"] == pytest.approx(4600 / 2500)
    assert versus["perplexity_advantage"] == pytest.approx(1.5)
    assert set(versus) == {"conditioning_advantage", "conditioning_ratio", "perplexity_advantage", "perplexity_ratio"}


def test_report_prints_a_folder_of_the_original_files(folder, capsys):
    for arguments in (["report", str(folder)], ["report", "--results_dir", str(folder)], ["report", f"--results-dir={folder}"]):  # fmt: skip
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "geometry" in out
        assert "scenario 2" in out


def test_a_damaged_file_is_named(folder, capsys):
    (folder / "geometry.json").write_text('{"method": "geometry", "initial": {}}')
    with pytest.raises(UserError, match=r"geometry\.json"):
        read_result(folder / "geometry.json")
    assert main(["report", str(folder)]) == 2


@pytest.mark.parametrize(
    ("cond", "ppl", "words"),
    [
        (1750, 8.5, "scenario 1"),
        (3000, 9.5, "scenario 2"),
        (4200, 10.5, "scenario 3"),
        (1750, 10.5, "none of the original study's three"),
        (4600, 10.7, "scenario 3"),
        (4900, 10.85, "scenario 3"),
        (6000, 12.0, "none of the original study's three scenarios: geometry does harm"),
    ],
)
def test_the_originals_own_figures_fall_in_its_scenarios(cond, ppl, words):
    assert words in scenario(result(cond, ppl), result(4600, 10.7))


def test_geometry_that_does_harm_is_no_minimal_effect():
    """The run on the embedded default: perplexity +75 %, conditioning +105 %, beside a control of +1 % and +7 %."""
    standard = result(4738 * 1.0729, 10.9 * 1.011)
    said = scenario(result(4738 * 2.048, 10.9 * 1.749), standard)
    assert "geometry does harm" in said
    assert "conditioning +90.9 % and perplexity +73 %" in said
    assert "minimal effect" not in said
    only = scenario(result(1750, 10.9 * 1.75), standard)
    assert "geometry does harm" in only
    assert "conditioning as in scenario 1" in only


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_is_missing(folder, capsys, value):
    path = folder / "geometry.json"
    path.write_text(path.read_text().replace('"cond": 2500', f'"cond": {value}').replace("4200", value))
    found = read_result(path)
    assert found.final["cond"] is None
    assert found.conditioning == [4738, None]
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "not run" in out
    assert "No scenario: ff_gram_original was not measured" in out
    path.write_text(json.dumps(README_FORM).replace('"ppl": 9.2', f'"ppl": {value}'))
    assert "No scenario: perplexity was not measured" in scenario(read_result(path), read_folder(folder)["standard"])


def result(cond, ppl):
    return OriginalResult("", {"cond": 4738, "ppl": 10.9}, {"cond": cond, "ppl": ppl}, [], [], [])


def test_what_training_does_by_itself_is_no_rescue():
    """Continued training that moves as far as geometry leaves scenario 3."""
    assert "scenario 3" in scenario(result(1750, 8.5), result(1750, 8.5))
    assert "scenario 1" in scenario(result(1750, 8.5), result(4738, 10.9))


def test_without_a_control_or_a_measurement_there_is_no_scenario():
    assert scenario(result(1750, 8.5), None).startswith("No scenario")
    for cond in (None, -2.5e6):
        assert "ff_gram_original was not measured" in scenario(result(cond, 8.5), result(4600, 10.7))
        assert set(summarise({"geometry": result(cond, 8.5)})["methods"]["geometry"]) == {"perplexity"}
