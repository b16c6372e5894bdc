"""The analysis layer, on a real tiny sweep: the original study's examples, SQL, phases, comparisons, snapshots."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import BASE, COMMAND, SWEEP

from least_action import analysis
from least_action.analysis import (
    ExperimentLoader,
    ExperimentStore,
    align_by_epoch,
    align_metrics,
    analyze_grokking,
    compute_aggregates_over_history,
    compute_derived_metrics,
    create_sweep_summary,
    detect_phases,
    differing_fields,
    get_experiment_group,
    get_layer_display_name,
    get_layer_groups,
    get_layer_names,
    get_routing_at_step,
    group_by_hyperparameter,
    load_sweep_groups,
    seed_bands,
    seed_groups,
    snapshot,
    telling_fields,
    time_to_grok,
)
from least_action.analysis.checkpoints import checkpoint_steps, nearest_checkpoint
from least_action.analysis.loader import SEEDS
from least_action.cli import main
from least_action.config import MEASURING, TrainerConfig
from studycore.errors import UserError
from studycore.metrics_log import read_rows, write_parquet
from studycore.statistics import mean_interval
from studycore.testing.runs import running, wait_for_rows


@pytest.fixture
def runs(made, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "runs" / "least-action"))


def fabricated(root, name, rows, **config):
    """A finished run's folder with the given rows."""
    folder = root / name
    folder.mkdir(parents=True)
    manifest = {
        "study": "least-action", "version": "0", "verb": "train", "configuration_hash": "0", "state": "done", "reason": "",
        "git": {}, "versions": {}, "devices": {}, "data_fingerprints": {}, "times": {"started": "2026"}, "argv": [],
        "seeds": [], "resumed": [],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"p": 7, "event_window": 2, "seed": 0, "weight_decay": 1.0} | config)
    )
    write_parquet(folder / "history.parquet", rows)
    return folder


def rows_of(test_acc, train_acc=None, every=10):
    train_acc = [1.0] * len(test_acc) if train_acc is None else train_acc
    return [
        {"step": i * every, "epoch": i * every, "train_acc": a, "test_acc": b, "train_loss": 0.5, "test_loss": 1.0}
        for i, (a, b) in enumerate(zip(train_acc, test_acc, strict=True))
    ]


# ------------------------------------------------------------------------------------------- the original's examples
EXAMPLES = """
from least_action.analysis import ExperimentStore, ExperimentLoader, detect_phases

store = ExperimentStore()
best = store.query(\'\'\'
    SELECT experiment_name, MAX(test_acc) as best_acc
    FROM experiments
    GROUP BY experiment_name
    ORDER BY best_acc DESC
    LIMIT 5
\'\'\')

loader = ExperimentLoader()
exp = loader.load('p17_lr3e-4_wd1.0')
print(f"Max epoch: {exp.max_epoch}, Grokked: {exp.has_grokked}")

phases = detect_phases(exp.history_df)
print(f"Grokked at step {phases.grokking_start}")

from least_action.analysis import compute_derived_metrics
enriched = compute_derived_metrics(exp.history_df)
print(enriched[['step', 'generalization_gap', 'loss_ratio']].tail())

from least_action.analysis import create_sweep_summary
exps = [loader.load(name) for name in store.list_experiments()[:5]]
summary = create_sweep_summary(exps, ['lr', 'weight_decay'], ['test_acc'])
"""


def test_the_original_studys_examples_run(tmp_path, monkeypatch, capsys):
    """On a real sweep of one seed, whose runs have the names of the original study's."""
    monkeypatch.chdir(tmp_path)
    grid = {"lr": [3e-4, 1e-3, 3e-3], "weight_decay": [0.5, 1.0]}
    sweep = {"name": "p{p}_lr{lr}_wd{weight_decay}", "base": BASE | {"p": 17, "epochs": 10}, "grid": grid}
    Path("s.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "--config", "s.yaml", "--device", "cpu", "--threads", "1", "--processes", "1"]) == 0
    capsys.readouterr()
    found = {}
    exec(EXAMPLES, found)
    assert list(found["best"].columns) == ["experiment_name", "best_acc"]
    assert len(found["best"]) == 5
    made = Path("runs/least-action")
    by_hand = [
        max(row["test_acc"] for row in read_rows(path))
        for path in made.rglob("metrics.jsonl")
        if (path.parent / "checkpoints").exists()
    ]
    assert len(by_hand) == 6
    assert found["best"]["best_acc"].tolist() == sorted(by_hand, reverse=True)[:5]
    assert "Max epoch: 10, Grokked: False" in capsys.readouterr().out
    assert found["summary"]["test_acc"].notna().all() and len(found["summary"]) == 5


def test_the_names_that_the_original_study_has_are_there():
    names = (
        "ExperimentStore ExperimentLoader detect_phases analyze_grokking compute_derived_metrics "
        "compute_aggregates_over_history align_by_epoch group_by_hyperparameter create_sweep_summary get_layer_names "
        "get_layer_groups get_layer_display_name load_sweep_groups get_experiment_group"
    )
    assert set(names.split()) <= set(analysis.__all__)
    assert all(hasattr(analysis, name) for name in analysis.__all__)


# --------------------------------------------------------------------------------------------------------------- store
def test_configurations_are_joined_to_histories_by_run(made):
    store = ExperimentStore(made)
    joined = store.query("SELECT DISTINCT experiment_name, config_lr, weight_decay, seed, sweep, arm FROM experiments")
    assert len(joined) == 9
    for _, row in joined[joined["sweep"] == SWEEP].iterrows():
        lr, decay, seed = re.fullmatch(r".*lr(.*)_wd(.*)_s(.*)", row["experiment_name"]).groups()
        assert (row["config_lr"], row["weight_decay"], row["seed"]) == (float(lr), float(decay), int(seed))
        assert row["arm"] == f"p7_lr{lr}_wd{decay}"
    asof = store.query(
        "SELECT a.epoch, b.epoch AS measured FROM history a ASOF JOIN "
        "(SELECT * FROM history WHERE weight_hessian_trace IS NOT NULL) b "
        "ON a.experiment_name = b.experiment_name AND a.epoch >= b.epoch WHERE a.experiment_name = ? ORDER BY 1",
        [f"{SWEEP}/p7_lr3e-4_wd1.0_s42"],
    )
    assert asof["measured"].tolist() == [epoch // 15 * 15 for epoch in asof["epoch"]]


def test_runs_with_different_columns(runs):
    store = ExperimentStore(runs)
    counts = store.query(
        "SELECT sweep, count(routing_entropy) AS routed, count(test_acc) AS rows FROM experiments GROUP BY sweep ORDER BY sweep"
    )
    assert counts["routed"].tolist() == [4, 0]
    assert counts["rows"].tolist() == [7, 8 * 7]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT tst_acc FROM experiments", ["no column 'tst_acc'", "test_acc"]),
        ("SELECT avg(weight_dcay) FROM runs WHERE p = 7", ["no column 'weight_dcay'", "weight_decay"]),
        ("SELECT h.tst_acc FROM history h", ["no column 'tst_acc'", "test_acc"]),
        ("SELECT 'é', h.tst_acc FROM history h", ["no column 'tst_acc'", "test_acc"]),
        ("SELECT xyzzy FROM runs", ["no column 'xyzzy'", "store.columns() lists those there are"]),
        ("SELECT h.test_acc FROM runs h", ['does not have a column named "test_acc"']),
        ("SELECT avg(p, p) FROM runs", ["No function matches"]),
        ("SELECT * FROM experimnts", ["experimnts does not exist", "did you mean experiments?"]),
        ("SELEC 1", ["syntax error"]),
        ("DROP VIEW experiments", ["read only"]),
        ("SELECT 1; SELECT 2", ["one SELECT"]),
        ("COPY (SELECT 1) TO 'x.csv'", ["read only"]),
        ("SELECT * FROM read_csv('/etc/passwd')", ["query:"]),
        ("SELECT * FROM runs WHERE p = 'x'", ["query:"]),
        ("", ["one SELECT"]),
    ],
)
def test_a_wrong_query_is_one_sentence(made, sql, words):
    with pytest.raises(UserError) as error:
        ExperimentStore(made).query(sql)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence


def test_broken_runs_are_left_out_with_a_sentence_each(runs):
    broken = {
        "p7_lr1e-3_wd0.0_s42": lambda folder: (folder / "history.parquet").write_bytes(b"PAR1 torn"),
        "p7_lr1e-3_wd0.0_s43": lambda folder: (folder / "manifest.json").write_text("{"),
        "p7_lr1e-3_wd1.0_s42": lambda folder: (folder / "config.yaml").write_text("p: seven\n"),
        "p7_lr1e-3_wd1.0_s43": lambda folder: (folder / "config.yaml").unlink(),
    }
    for name, damage in broken.items():
        damage(runs / SWEEP / name)
    fabricated(runs, "odd", [{"step": 0, "epoch": 0, "test_acc": "high", "train_acc": 0.5}])
    store = ExperimentStore(runs)
    assert set(store.broken) == {f"{SWEEP}/{name}" for name in broken} | {"odd"}
    assert all("\n" not in sentence and str(runs) in sentence for sentence in store.broken.values())
    assert len(store.list_experiments()) == 5
    assert store.query("SELECT count(DISTINCT experiment_name) AS n FROM experiments")["n"].item() == 5


def test_an_empty_folder_and_none(tmp_path):
    store = ExperimentStore(tmp_path)
    assert store.list_experiments() == []
    assert store.query("SELECT max(test_acc) AS best FROM experiments")["best"].isna().all()
    with pytest.raises(UserError, match="no such folder"):
        ExperimentStore(tmp_path / "none")


def test_a_run_that_is_being_written_is_seen_as_far_as_it_is(runs):
    done = runs / SWEEP / "p7_lr1e-3_wd1.0_s42"
    manifest = json.loads((done / "manifest.json").read_text())
    (done / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    (done / "history.parquet").unlink()
    whole = (done / "metrics.jsonl").read_text().splitlines(keepends=True)
    (done / "metrics.jsonl").write_text("".join(whole[:3]) + whole[3][:9])
    store = ExperimentStore(runs)
    name = f"{SWEEP}/{done.name}"
    assert len(store.load(name).history) == 3
    assert store.load(name).state == "interrupted"
    assert store.refresh() is False
    (done / "metrics.jsonl").write_text("".join(whole[:5]))
    before = store.load(f"{SWEEP}/p7_lr1e-3_wd1.0_s43")
    assert store.refresh() is True
    assert store.query("SELECT count(*) AS n FROM history WHERE experiment_name = ?", [name])["n"].item() == 5
    assert store.load(before.name) is before  # what did not change is not read again
    shutil.rmtree(done)
    assert store.refresh() is True
    assert name not in store.list_experiments()


def test_a_run_whose_process_is_killed_changes_from_running_to_interrupted(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(BASE | {"epochs": 1000000}))
    flags = ["--config", "c.yaml", "--device", "cpu", "--output-dir", "runs/live"]
    with running(*COMMAND, "train", *flags, cwd=tmp_path) as process:
        wait_for_rows(tmp_path / "runs/live", 3, process)
        store = ExperimentStore(tmp_path / "runs")
        assert store.load("live").state == "running"
        rows = len(store.load("live").history)
        assert rows >= 3
    store.refresh()
    assert store.load("live").state == "interrupted"
    assert len(store.load("live").history) >= rows


def test_a_wrong_name_is_one_sentence_with_near_names(made):
    loader = ExperimentLoader(made)
    with pytest.raises(UserError, match=r"no such experiment.*near it are.*p7_lr3e-4_wd1\.0_s42"):
        loader.load("p7_lr3e-4_wd1.0_s4")


def test_two_sweeps_with_the_same_names(runs):
    shutil.copytree(runs / SWEEP, runs / "sweep-b")
    loader = ExperimentLoader(runs)
    assert len(loader.list_experiments()) == 17
    with pytest.raises(UserError, match="2 experiments"):
        loader.load("p7_lr3e-4_wd1.0_s42")
    assert loader.load("sweep-b/p7_lr3e-4_wd1.0_s42").folder.parent.name == "sweep-b"


def test_groups():
    groups = load_sweep_groups()
    assert len(groups["transformer_sweep"]) == 18
    assert "p17_lr1e-3_wd1.0" in groups["transformer_sweep"]
    assert "validate" not in groups
    assert get_experiment_group("p17_lr1e-3_wd1.0", groups) == "transformer_sweep"
    assert get_experiment_group("sweep-1/p17_lr1e-3_wd1.0", groups) == "sweep-1"
    assert get_experiment_group("train-2", groups) == "single runs"


# --------------------------------------------------------------------------------------------------- phases and metrics
def test_phases_are_found_by_windows_and_a_single_touch_does_not_count():
    train = [0.2, 0.99, 0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    test = [0.1, 0.99, 0.1, 0.1, 0.1, 0.4, 0.8, 0.99, 0.99, 0.9, 0.99, 1]
    phases = detect_phases(pd.DataFrame(rows_of(test, train)), chance=1 / 7, window=2)
    assert phases.memorization_start == 30
    assert phases.memorization_end == 50
    assert phases.grokking_start == 70
    assert phases.plateau_start == 100
    assert phases.delay == 40
    assert phases.spans() == [
        ("fitting", 0, 30),
        ("memorised", 30, 50),
        ("transition", 50, 70),
        ("reached 0.99", 70, 110),
    ]


def test_phases_that_did_not_happen_are_none():
    never = detect_phases(pd.DataFrame(rows_of([0.1] * 9)), chance=1 / 7)
    assert (never.memorization_start, never.memorization_end, never.grokking_start, never.plateau_start) == (
        0,
        None,
        None,
        None,
    )
    assert never.last_step == 80
    assert analyze_grokking(pd.DataFrame(rows_of([0.1] * 9)))["grokked"] is False
    fell = detect_phases(pd.DataFrame(rows_of([0.1, 1, 1, 1, 0.5])), window=2)
    assert fell.grokking_start == 10
    assert fell.plateau_start is None
    with pytest.raises(UserError, match="no evaluation"):
        detect_phases(pd.DataFrame(rows_of([])).reindex(columns=["step", "train_acc", "test_acc"]))


def test_a_commutative_run_that_knows_its_mirror_pairs_alone_stays_memorised(tmp_path):
    test, new = [0.02, 0.4, 0.4, 0.4, 0.4, 1, 1, 1], [0.02, 0.03, 0.03, 0.5, 0.6, 1, 1, 1]
    rows = [row | {"new_pairs_acc": value} for row, value in zip(rows_of(test, [0.5] + [1] * 7), new, strict=True)]
    phases = detect_phases(pd.DataFrame(rows), chance=1 / 59, window=2)
    assert phases.spans() == [
        ("fitting", 0, 10),
        ("memorised", 10, 30),
        ("transition", 30, 50),
        ("reached 0.99", 50, 70),
    ]
    never = detect_phases(pd.DataFrame(rows[:3]), chance=1 / 59, window=2)
    assert never.spans() == [("fitting", 0, 10), ("memorised", 10, 20)]
    old = detect_phases(pd.DataFrame(rows).drop(columns="new_pairs_acc"), chance=1 / 59, window=2)
    assert (old.memorization_end, phases.memorization_end) == (10, 30)
    fabricated(tmp_path, "a", rows, p=59)
    events = ExperimentLoader(tmp_path).load("a").events
    assert (events.memorised, events.onset, events.test_at_memorised, events.new_at_memorised) == (10, 30, 0.4, 0.03)


def test_quality_of_grokking():
    found = analyze_grokking(pd.DataFrame(rows_of([0.1, 0.2, 1, 1, 0.9, 1])), window=2)
    assert found["grokking_step"] == 20
    assert (found["share_train_above_099"], found["share_test_above_099"]) == (1, 0.75)
    assert found["test_variance_after"] == pytest.approx(np.var([1, 1, 0.9, 1], ddof=1))
    assert found["final_test_acc"] == 1


def test_derived_metrics_and_aggregates():
    history = pd.DataFrame(rows_of([0.1, 0.2, 1, 1, 1, 1, 1]))
    history["weight_norm"] = [4.0, None, 2.0, None, None, None, None]
    history.loc[0, "train_loss"] = 0.0
    derived = compute_derived_metrics(history)
    assert derived["generalization_gap"].tolist() == pytest.approx([0.9, 0.8, 0, 0, 0, 0, 0])
    assert np.isnan(derived["loss_ratio"][0])
    assert derived["loss_ratio"][1] == 2
    assert derived["weight_norm_rate"][2] == pytest.approx(-2 / 20)
    assert "loss_ratio" not in history
    whole = compute_aggregates_over_history(history, ["test_acc", "weight_norm"])
    assert whole.loc["weight_norm", ["n", "mean", "first", "last"]].tolist() == [2, 3, 4, 2]
    assert compute_aggregates_over_history(history, ["test_acc"], after_grok=True).loc["test_acc", "min"] == 1
    with pytest.raises(UserError, match="'tst' is no number"):
        compute_aggregates_over_history(history, ["tst"])


def test_metrics_of_different_intervals_are_aligned_as_of():
    history = pd.DataFrame(rows_of([0.1] * 5))
    history["weight_norm"] = [None, 1.0, None, 2.0, None]
    aligned = align_metrics(history, ["test_acc", "weight_norm"])
    assert aligned["weight_norm"].isna().tolist() == [True, False, False, False, False]
    assert aligned["weight_norm"].tolist()[1:] == [1, 1, 2, 2]
    assert align_metrics(history, ["test_acc"], to="weight_norm")["epoch"].tolist() == [10, 30]


# ---------------------------------------------------------------------------------------------------------- comparisons
@pytest.fixture
def three(tmp_path):
    fabricated(tmp_path, "fast_s0", rows_of([0.1, 1, 1, 1, 1]), seed=0)
    fabricated(tmp_path, "fast_s1", rows_of([0.1, 0.1, 1, 1, 1]), seed=1)
    fabricated(tmp_path, "slow_s0", rows_of([0.1, 0.2, 0.3], every=20), weight_decay=0.0)
    loader = ExperimentLoader(tmp_path)
    return [loader.load(name) for name in loader.list_experiments()]


def test_alignment_by_epoch_does_not_go_beyond_a_run(three):
    aligned = align_by_epoch(three, "test_acc")
    assert aligned.index.tolist() == [0, 10, 20, 30, 40]
    assert aligned["slow_s0"].tolist() == [0.1, 0.1, 0.2, 0.2, 0.3]
    short = align_by_epoch([three[0]], epochs=[0, 15, 99])
    assert short["fast_s0"].tolist()[:2] == [0.1, 1]
    assert np.isnan(short["fast_s0"][99])


def test_statistics_over_seeds(three):
    band = seed_bands(align_by_epoch(three[:2]))
    expected = mean_interval([1.0, 0.1])
    assert band.loc[10].tolist() == pytest.approx([expected.estimate, expected.low, expected.high, 0.1, 1, 2])
    grouped = group_by_hyperparameter(three, "weight_decay")
    assert grouped["weight_decay"].tolist() == [0, 1]
    assert grouped["n"].tolist() == [1, 2]
    assert grouped["mean"].tolist() == [0.3, 1]
    assert grouped["low"].isna().tolist() == [True, False]


def groups_of(tmp_path, runs):
    """Label -> names of the groups of fabricated runs, given as name -> changes of the configuration."""
    for name, changes in runs.items():
        fabricated(tmp_path, name, rows_of([0.1, 0.1]), **changes)
    loader = ExperimentLoader(tmp_path)
    groups = seed_groups([loader.load(name) for name in runs])
    return {label: [run.name for run in members] for label, members in groups.items()}


def test_runs_of_one_name_and_different_settings_are_no_seeds_of_each_other(tmp_path):
    runs = {"x/a_s0": {"p": 59}, "x/a_s1": {"p": 59, "seed": 1}, "y/a_s0": {"p": 113, "hidden_dim": 8}, "y/b": {"p": 5}}
    groups = groups_of(tmp_path, runs)
    assert groups == {"a, p 59": ["x/a_s0", "x/a_s1"], "a, p 113": ["y/a_s0"], "b": ["y/b"]}


def test_many_fields_that_differ_are_named_by_the_sweep(tmp_path):
    of = ("p", "lr", "hidden_dim", "weight_decay")
    settings = [(5, 0.1, 8, 1.0), (7, 0.1, 8, 1.0), (7, 0.2, 8, 1.0), (7, 0.2, 9, 1.0), (7, 0.2, 9, 0.0)]
    groups = groups_of(tmp_path, {f"sweep{i}/a_s0": dict(zip(of, s, strict=True)) for i, s in enumerate(settings)})
    assert list(groups) == [f"sweep{i}/a" for i in range(5)]


def test_seeds_of_separate_commands_are_one_group(tmp_path):
    runs = {f"train-{seed}": {"seed": seed, "data_seed": None, "epochs": 400 + seed} for seed in (1, 2, 3)}
    assert groups_of(tmp_path, runs) == {"one setting": list(runs)}
    fabricated(tmp_path, "other_s1", rows_of([0.1]), seed=1, lr=0.5)
    fabricated(tmp_path, "other_s2", rows_of([0.1]), seed=2, lr=0.5)
    loader = ExperimentLoader(tmp_path)
    groups = seed_groups([loader.load(name) for name in loader.list_experiments()])
    assert {label: len(members) for label, members in groups.items()} == {"other": 2, "lr None": 3}


def test_a_run_made_twice_is_no_further_seed(tmp_path):
    groups = groups_of(tmp_path, {f"{sweep}/a_s{seed}": {"seed": seed} for sweep in "xy" for seed in (0, 1)})
    assert groups == {"x/a": ["x/a_s0", "x/a_s1"], "y/a": ["y/a_s0", "y/a_s1"]}
    split = groups_of(
        tmp_path / "split", {"b_s0": {"data_seed": 0}, "c_s0": {"data_seed": 1}, "d_s0": {"data_seed": None}}
    )
    assert list(split.values()) == [["b_s0", "c_s0"], ["d_s0"]]  # a split of null is that of the seed, here 0


def test_fields_that_tell_settings_apart(tmp_path):
    plain = {"operation": "add", "p": 7, "lr": 0.1, "model_type": "transformer", "lambda_routing": 0.0, "epochs": 9}
    changes = [{}, {"seed": 1}, {"epochs": 5}, {"model_type": "routed", "lambda_routing": 1.0}, {"lr": 0.2}]
    for i, change in enumerate([*changes, {"operation": "compose", "p": 120}]):
        fabricated(tmp_path, f"r{i}", rows_of([0.1]), **plain | change)
    loader = ExperimentLoader(tmp_path)
    runs = [loader.load(name) for name in loader.list_experiments()]
    assert set(differing_fields(runs)) == {"operation", "p", "lr", "model_type", "lambda_routing", "epochs"}
    assert telling_fields(runs)[0] == "operation"
    assert set(telling_fields(runs)) < {"operation", "lr", "model_type", "lambda_routing"}
    assert len(telling_fields(runs)) == 3  # the routed model's other field, the modulus of S5 and epochs go along
    assert telling_fields(runs, beyond=["operation", "lr"]) in (["model_type"], ["lambda_routing"])
    assert telling_fields(runs[:3]) == telling_fields([]) == []
    assert {*MEASURING, *SEEDS} <= set(TrainerConfig.__dataclass_fields__)


def test_time_to_grok_is_censored(three):
    table = time_to_grok(three, ["weight_decay"])
    assert table["grokked"].tolist() == [0, 2]
    assert table["median"].isna().tolist() == [True, False]
    assert table["median"][1] == 10
    assert table["last_epoch"].tolist() == [40, 20]
    summary = create_sweep_summary(three, ["weight_decay"])
    assert summary["grokked"].tolist()[:2] == [10, 20]
    assert summary["censored"].tolist() == [False, False, True]
    with pytest.raises(UserError, match="wd: is no field"):
        time_to_grok(three, ["wd"])


# ------------------------------------------------------------------------------------------- layers and checkpoints
def test_layers_are_those_of_the_model(made):
    config = ExperimentLoader(made).load("routed").config
    names, groups = get_layer_names(config), get_layer_groups(config)
    assert sorted(index for group in groups.values() for index in group) == list(names)
    assert "routing" in groups
    assert names[0] in get_layer_display_name(config, 0)
    with pytest.raises(ValueError, match="99 is no layer"):
        get_layer_display_name(config, 99)
    transformer = ExperimentLoader(made).load("p7_lr3e-4_wd1.0_s42").config
    assert set(get_layer_groups(transformer)) == {"embeddings", "attention", "feed-forward", "norms", "output"}


def test_checkpoints_by_step_and_routing_by_percentage(made):
    from safetensors.numpy import load_file

    routed = ExperimentLoader(made).load("routed")
    assert checkpoint_steps(routed)[-3:] == [10, 20, 30]
    assert [nearest_checkpoint(routed, percent) for percent in (30, 40, 60, 100)] == [10, 10, 20, 30]
    found = get_routing_at_step(routed, 100)
    final = load_file(routed.folder / "arrays.safetensors")
    np.testing.assert_array_equal(found.dominant_heads[0], final["dominant_head_0_PP"])
    np.testing.assert_allclose(found.head_use[0], final["head_use_0_R"], rtol=1e-5)
    assert get_routing_at_step(routed, 35).step == 10
    whole = snapshot(routed, 30)
    norm = [row["weight_norm"] for row in read_rows(routed.folder / "metrics.jsonl") if "weight_norm" in row][-1]
    assert sum(x**2 for x in whole.layer_norms.values()) ** 0.5 == pytest.approx(norm)
    with pytest.raises(UserError, match=r"15 has no checkpoint.*10, 20, 30"):
        snapshot(routed, 15)
    with pytest.raises(UserError, match="routes nothing"):
        get_routing_at_step(ExperimentLoader(made).load("p7_lr3e-4_wd1.0_s42"), 50)
