"""Reports: whole for tiny real runs, without NaN, with what a reader looks for; tables of sweeps against their runs."""

import csv
import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from fabricated import peak, planted_sweep, run, scratch, table, whole, write_sweep

from studycore.cli import report_verb
from studycore.errors import UserError
from studycore.execution import make_run, report_on
from studycore.options import TrainOptions
from studycore.report import figure_of
from studycore.statistics import Interval
from ternary_vae import figures, report
from ternary_vae.cli import STUDY
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.evaluate_verb import evaluate_command
from ternary_vae.history import history_metrics
from ternary_vae.metric_table import metric_table
from ternary_vae.metrics.closed_form import closed_form
from ternary_vae.metrics.evaluate import untrained
from ternary_vae.metrics.final import flat_view


def numbers(value):
    """Every number inside nested results."""
    if isinstance(value, dict):
        return [x for part in value.values() for x in numbers(part)]
    if isinstance(value, list):
        return [x for part in value for x in numbers(part)]
    return [value] if isinstance(value, int | float) else []


SMALL = {
    "trits": 3, "latent_dim": 4, "encoder_sizes": [12, 8], "decoder_sizes": [8], "hidden_dim": 8, "seed": 3,
    "coverage_epochs": 6, "epochs": 6, "batch_size": 10, "coverage_lr": 1e-2, "lr": 1e-2, "kl_warmup_epochs": 2,
    "checkpoint_every": 4,
}  # fmt: skip


def make(folder, **changes):
    config = TrainConfig(**{**SMALL, **changes})
    make_run(STUDY, "train", config, folder, TrainOptions(device="cpu", threads=1))
    return folder, config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run of both stages."""
    return make(tmp_path_factory.mktemp("run") / "train")


def reported(tmp_path, runs, unfinished=()):
    """The folder of a sweep of these runs, with its report."""
    folder = write_sweep(tmp_path / "sweep", runs, dict(unfinished))
    report_on(STUDY, folder)
    return folder


def results_of(folder):
    return json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)


# ----------------------------------------------------------------------------------------------------------- one run
def test_a_run_is_reported_whole(trained):
    folder, config = trained
    results = results_of(folder)
    metrics = results["metrics"]
    wanted = {
        "coverage",
        "hierarchy",
        "hierarchy_ceiling",
        "somers_d",
        "min_level_gap",
        "tied_radius_share",
        "richness",
    }
    wanted |= {"best_hierarchy", "best_epoch", "initial_hierarchy", "parameters", "coverage_sampled", "q"}
    assert wanted <= set(metrics)
    assert set(metrics["baselines"]) == {"closed_form", "untrained"}
    assert all(math.isfinite(x) for x in numbers(results))
    assert metrics["baselines"]["closed_form"]["somers_d"] == -1
    operations = Operations.all(3)
    assert metrics["baselines"]["closed_form"] == closed_form(config)
    assert metrics["baselines"]["untrained"] == untrained(config, operations)
    for name in ("curves", "radius_by_level", "ball"):
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()
    for page in ("report.html", "report.md"):
        text = (folder / page).read_text()
        assert "closed form (no learning)" in text and "untrained" in text
        # -nan and inf stand in no cell; the words are parts of others.
        assert not re.search(r"(>|\| )-?(nan|inf)(<| \|)", text)
    assert (folder / "report.html").read_text().count("<svg") == 3
    assert results["claims"] == [], "a run of 3 trits is asked for nothing: the targets are of 9"


def test_history_metrics_pick_the_best_and_the_first_full_coverage():
    rows = [
        {"step": 0, "stage": "coverage", "epoch": 0, "coverage": 0.1},
        {"step": 9, "stage": "coverage", "epoch": 1, "coverage": 1.0},
        {"step": 9, "stage": "hierarchy", "epoch": 0, "coverage": 1.0, "hierarchy": 0.4},
        {"step": 12, "stage": "hierarchy", "epoch": 1, "coverage": 1.0, "hierarchy": -0.7},
        {"step": 15, "stage": "hierarchy", "epoch": 2, "coverage": 1.0, "hierarchy": -0.6},
    ]
    assert history_metrics(rows) == {
        "coverage_epoch": 1, "coverage_epoch_stage": "coverage", "initial_hierarchy": 0.4, "starts_inverted": True,
        "best_hierarchy": -0.7,
        "best_epoch": 1, "last_epoch": 2,
    }  # fmt: skip
    never = history_metrics(rows[:1])
    assert "coverage_epoch" not in never and "best_hierarchy" not in never


def test_the_verb_report_writes_the_same_results_again(trained, capsys):
    folder, _ = trained
    before = results_of(folder)
    (folder / "report.html").unlink()
    report_verb(STUDY, [str(folder)])
    assert results_of(folder) == before and (folder / "report.html").exists()
    out = capsys.readouterr().out
    assert "come back with every trit right" in out and str(folder / "report.html") in out


def test_a_run_that_trains_no_radii_shows_them_as_untrained(tmp_path):
    folder, _ = make(tmp_path / "run", stages="coverage")
    metrics = results_of(folder)["metrics"]
    assert "coverage" in metrics and "hierarchy" not in metrics and "richness" not in metrics
    line = next(line for line in (folder / "report.md").read_text().splitlines() if line.startswith("| hierarchy |"))
    assert line.split(" | ")[1] == "untrained"
    assert not (folder / "figures" / "ball.svg").exists()
    assert results_of(folder)["claims"] == []


def test_a_folder_without_arrays_says_which_figures_it_lacks(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "old")
    (folder / "arrays.safetensors").unlink()
    shutil.rmtree(folder / "figures")
    report_on(STUDY, folder)
    assert {path.name for path in (folder / "figures").iterdir()} == {"curves.svg"}
    assert "No figures of its radii" in (folder / "report.md").read_text()


def test_a_run_that_has_not_ended_is_reported_as_far_as_it_is(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "cut")
    (folder / "results.json").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state": "stopped"}))
    report_on(STUDY, folder)
    assert "has not ended" in (folder / "report.md").read_text()
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no evaluation yet"):
        report_on(STUDY, folder)


def test_the_name_that_the_first_version_gave_a_metric_is_still_shown():
    lines = {row[0]: row for row in metric_table({"q": 1.5, "q_seed": 2.5}, {}).rows}
    assert lines["q_seed"][1] == 2.5 and lines["q"][1] == 1.5


def test_a_long_run_shows_every_nth_evaluation_and_the_last():
    rows = [{"step": i, "stage": "coverage", "epoch": i, "coverage": 0.5} for i in range(450)]
    shown = report.curves_table(rows).rows
    assert [row[1] for row in shown] == [*range(0, 450, 3), 449] and len(shown) <= report.CURVE_ROWS


def test_evaluate_prints_what_it_writes(trained, tmp_path, capsys):
    folder, _ = trained
    evaluate_command([str(folder), "--output", str(tmp_path / "metrics.json")])
    written = json.loads((tmp_path / "metrics.json").read_text())
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["metric"].split()[-1] == "meaning"
    for name in ("coverage", "hierarchy", "somers_d"):
        assert lines[name].split()[1] == f"{written[name]:.6f}"
        assert "baselines" in written
    assert f"{written['baselines']['closed_form']['hierarchy']:.6f}" in lines["hierarchy"]
    evaluate_command([str(folder), "--output", str(tmp_path / "metrics.json")])  # replaces its own file, and no other
    (tmp_path / "mine.json").write_text("[1]")
    with pytest.raises(UserError, match=r"--output: '.*mine\.json' is there and no earlier output of this command"):
        evaluate_command([str(folder), "--output", str(tmp_path / "mine.json")])
    with pytest.raises(UserError, match="--output"):  # before anything is measured
        evaluate_command([str(folder), "--output", str(tmp_path / "metrics.json" / "below.json")])


# ------------------------------------------------------------------------------------------------------------- sweep
@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The runs and the reported folder of a sweep in which the findings hold."""
    runs = planted_sweep()
    return runs, reported(tmp_path_factory.mktemp("planted"), runs, {"arm_s3": "lr: made the loss NaN"})


def test_a_sweep_is_reported_whole(planted):
    runs, folder = planted
    results = results_of(folder)
    assert all(math.isfinite(x) for x in numbers(results))
    arm = results["metrics"]["arms"]["1_curvature/sweep_curv_2.0"]
    own = [min(row["hierarchy"] for row in one.rows) for one in runs if one.arm == "sweep_curv_2.0"]
    assert arm["best"] == pytest.approx(np.mean(own)) and arm["n"] == 5
    assert arm["best_std"] == pytest.approx(np.std(own, ddof=1))
    assert results["metrics"]["from_scratch"]["frozen_decoder"]["coverage"] == pytest.approx(0.22, abs=0.01)
    assert results["metrics"]["failed"] == 1
    html = (folder / "report.html").read_text()
    for text in (
        "lr: made the loss NaN",
        "closed form (3^9, curvature 2",
        "untrained",
        "Factors that changed nothing in these runs",
    ):
        assert text in html
    for name in ("curves", "effects", "pareto"):
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()

    arms = json.loads((folder / "table.json").read_text())
    of_phases = [one for one in runs if one.config.stages == "hierarchy"]
    assert {row["arm"] for row in arms} == {re.sub(r"_draw_\d", "", one.arm) for one in of_phases}
    with open(folder / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == [row["arm"] for row in arms]
    assert float(rows[1]["best"]) == arms[1]["best"] == pytest.approx(np.mean(own))
    markdown = (folder / "table.md").read_text()
    shown = Interval(*(arms[1][name] for name in ("best", "best_interval_low", "best_interval_high")), n=5)
    assert f"| {figure_of(shown)} |" in markdown and "is the best" in markdown


def test_inert_factors_and_inverted_starts_stand_in_the_report(tmp_path):
    curve = peak(-0.69, 8, -0.6)
    runs = [run(f"at_{c:g}", s, curve, curvature=c, max_radius=0.7) for c in (1.0, 2.0) for s in range(5)]
    runs += [run("other", 0, [-0.1, -0.5])]
    text = (reported(tmp_path, runs) / "report.md").read_text()
    assert "| curvature | 1.0 | 2.0 | at_1 | at_2 | 5 | 205 |" in text
    assert (
        "10 of 11 runs of the phases begin with a positive hierarchy" in text
        and "end at -0.6000 on average, the others at -0.5000" in text
    )
    upright = (reported(tmp_path / "upright", [run("a", 0, [-0.1, -0.5])]) / "report.md").read_text()
    assert "begin with a positive" not in upright


def test_one_configuration_over_seeds_has_a_line_per_seed(tmp_path):
    folder = reported(tmp_path, [whole(s, {"richness": 0.004 + 0.001 * s}) for s in range(6)])
    metrics = results_of(folder)["metrics"]
    assert metrics["min"]["richness"] == 0.004 and metrics["max"]["richness"] == pytest.approx(0.009)
    assert metrics["seeds"]["train/3"]["covered"] == 19_683 and metrics["seeds"]["train/3"]["seconds"] == 60
    text = (folder / "report.md").read_text()
    assert sum(line.startswith("| train | ") for line in text.splitlines()) == 6 + 1  # and the arm's own line
    assert len(json.loads((folder / "table.json").read_text())) == 6
    assert "6 of 6 runs cover all operations and 6 have all levels apart" in text


def test_a_sweep_of_which_only_coverage_runs_finished_is_reported(tmp_path):
    folder = reported(tmp_path, [scratch("coverage", 0, [0.0, 0.4])], {"a_s0": "not begun"})
    assert "not begun" in (folder / "report.html").read_text()
    (line,) = [x for x in (folder / "report.md").read_text().splitlines() if x.startswith("| coverage |")]
    # One seed has neither deviation nor interval, and nothing that never happened has an epoch.
    assert line == "| coverage | 1 | 0.40000 (n = 1) | 0.40000 to 0.40000 | 0 of 1 | never |"


def test_the_best_run_of_a_sweep_is_shown_from_its_arrays(tmp_path):
    norm = np.linspace(0.1, 0.9, 27, dtype=np.float32)
    arrays = {"norm_N": norm, "flat_N2": np.stack([norm, 0 * norm], axis=1)}
    runs = [run("a", 0, [0.1, -0.5], trits=3), dataclasses.replace(run("b", 0, [0.1, -0.6], trits=3), arrays=arrays)]
    folder = reported(tmp_path, runs)
    assert "b_s0, the run with the best hierarchy at its end. The latent points" in (folder / "report.md").read_text()
    assert {"ball.svg", "radius_by_level.svg"} <= {path.name for path in (folder / "figures").iterdir()}
    other = reported(tmp_path / "none", [dataclasses.replace(one, arrays={}) for one in runs])
    assert "b_s0, the run with the best hierarchy at its end. No figures" in (other / "report.md").read_text()


# ----------------------------------------------------------------------------------------------------------- figures
def test_the_disk_keeps_the_true_radius():
    points = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    norm = points.norm(dim=1).numpy()
    assert np.linalg.norm(flat_view(points.numpy(), norm), axis=1) == pytest.approx(norm, rel=1e-12)
    # In two dimensions there is nothing to project: angles between points stay, up to the mean's place.
    turned = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]]) * 0.3
    seen = flat_view(turned, np.full(4, 0.3))
    assert seen @ seen.T == pytest.approx(turned @ turned.T)


def test_figures_of_all_operations_stay_small(tmp_path):
    operations = Operations.all(9)
    points = torch.randn(len(operations), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = torch.rand(len(operations), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.95
    points *= (norm / points.norm(dim=1))[:, None]
    v = operations.v_N.numpy()
    for path in (
        figures.plot_ball(flat_view(points.numpy(), norm.numpy()), v, 1.0, tmp_path / "ball.svg"),
        figures.plot_radius_by_level(v, norm.numpy(), 0.95, tmp_path / "radius.svg"),
    ):
        assert path.stat().st_size < 600_000 and "<image" in path.read_text()


def test_the_front_holds_what_nothing_beats():
    points = [(-0.8, 1.0), (-0.7, 2.0), (-0.7, 1.5), (-0.65, 2.0), (-0.6, 1.9), (-0.5, 3.0), (-0.8, 0.5)]
    assert figures.pareto_front(points) == [(-0.8, 1.0), (-0.7, 2.0), (-0.5, 3.0)]


def test_curves_are_means_of_the_runs_that_lasted():
    epochs, mean, low, high = figures.mean_curve(table([run("a", 0, [0.2, -0.4]), run("a", 1, [0.0, -0.6, -0.7])]))
    assert epochs == [0, 1, 2]
    assert mean == pytest.approx([0.1, -0.5, -0.7])
    assert low == pytest.approx([0.0, -0.6, -0.7]) and high == pytest.approx([0.2, -0.4, -0.7])


def test_names_lose_only_what_all_share():
    assert figures.short_names(["sweep4_lr_1e4", "sweep4_lr_1e3"]) == ["1e4", "1e3"]
    assert figures.short_names(["sweep_curv_1.0", "sweep_latent_8"]) == ["curv_1.0", "latent_8"]
    assert figures.short_names(["alone_here"]) == ["alone_here"]
    assert figures.short_names(["ab", "cd"]) == ["ab", "cd"]


def test_the_stability_runs_are_marked_with_the_original_studys_mean():
    assert figures.original_best("sweep5") == -0.74 and figures.original_best("sweep4_lr_1e3") == -0.79
    assert figures.original_best("sweep7_ordered") is None


def test_tied_arms_of_a_phase_are_marked(tmp_path):
    noise = [0.0, 0.02, -0.02, 0.01, -0.01]
    runs = [run("one", s, [0, -0.7]) for s in range(5)] + [run("two", s, [0, -0.6995 + noise[s]]) for s in range(5)]
    runs += [run("far", s, [0, -0.5 + noise[s]]) for s in range(5)]
    folder = reported(tmp_path, [dataclasses.replace(one, phase="p") for one in runs])
    lines = {x.split(" | ")[1]: x for x in (folder / "table.md").read_text().splitlines() if x.startswith("| p |")}
    assert "is the best" in lines["one"] and "| yes: 0.00" in lines["two"] and "| no: 0.20" in lines["far"]
