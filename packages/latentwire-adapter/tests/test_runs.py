"""Runs in this process: phase 1 and 2, every arm, resuming, the main job, two processes."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CPU

from latentwire_adapter import evaluation, fitting, objectives, selfcheck, train
from latentwire_adapter.cli import STUDY
from latentwire_adapter.config import EvaluateConfig, FitConfig, Phase2Config, SelfcheckConfig, SuiteConfig
from latentwire_adapter.evaluation_files import read_predictions
from latentwire_adapter.model import codecs, language_model, reader
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.compressor import EmbeddingCompressor
from latentwire_adapter.plan import plan, sweep_of_seeds
from studycore.configuration import to_dict
from studycore.errors import Stopped, UserError
from studycore.execution import alone, make_runs, report_on
from studycore.files import read_json
from studycore.language.pretrained import weights_fingerprint
from studycore.metrics_log import read_rows
from studycore.options import SweepOptions
from studycore.run import Run
from studycore.run_folder import read_manifest
from studycore.testing.interrupted import killed_at
from studycore.testing.runs import output_of, same

CONFIGS = Path(train.__file__).parent / "configs"


RUN_CHECKS = selfcheck.run_checks
TIMES = (
    "timestamp", "seconds", "fit_seconds", "decode_seconds", "seconds_per_question",
    "encode_seconds_per_1000_types", "decode_seconds_per_1000_types",
)  # fmt: skip
"""What a run measures by the clock."""


pytestmark = pytest.mark.usefixtures("checked")


def metrics(folder):
    return read_json(folder / "results.json")["metrics"]


def of(cls, config, **more):
    names = set(cls.__dataclass_fields__)
    return cls(**({k: v for k, v in to_dict(config).items() if k in names} | more))


def test_phase1_improves_on_the_inverse_it_starts_from_and_says_what_the_original_logged(trained, small):
    measured = metrics(trained)
    rows = [row for row in read_rows(trained / "metrics.jsonl") if row["type"] == "train_step"]
    assert rows[0]["nmse"] == pytest.approx(measured["linear_nmse"], rel=1e-4)
    assert measured["nmse"] < measured["linear_nmse"]
    original = {
        "step",
        "epoch",
        "timestamp",
        "loss",
        "recon_mse",
        "recon_cosine_sim",
        "recon_rel_error",
        "lr",
        "compression_ratio",
        "batch_size",
    }
    assert all(original <= set(row) for row in rows)
    (last,) = [row for row in read_rows(trained / "metrics.jsonl") if row["type"] == "full_eval"]
    assert {"f1", "em", "eval_samples"} <= set(last)
    assert measured["dimensions"] == 8
    assert measured["positions_per_row"] > 1
    assert {"norm_ratio", "held_out_nmse", "linear_held_out_nmse", "bits_per_token", "f1", "em"} <= set(measured)
    assert measured["bits_per_token"] == 8 * 16


def test_what_phase1_saves_is_what_it_scored(trained, small, make, tmp_path):
    """Loaded by `evaluate`, the adapter answers as it did in its own run."""
    again = make("evaluate", of(EvaluateConfig, small(), arm="adapter", phase1=str(trained)), tmp_path / "again")
    keep = ("id", "prediction", "f1", "em", "error", "answer_error", "answer_seen")
    one, other = ([{k: q.get(k) for k in keep} for q in read_predictions(f)["questions"]] for f in (trained, again))
    assert one == other
    assert any(q["answer_seen"] is not None for q in one)
    assert EmbeddingCompressor.from_pretrained(trained / "compressor").output_dim == 8
    assert Adapter.from_pretrained(trained / "adapter").arguments["d_model"] == 32


def test_held_out_types_are_in_no_fit(small, lm, monkeypatch):
    fit = fitting.make_fit(small(), lm, 8)
    weights_V = fit.weights(0.5)
    assert (weights_V[fit.held_V] == 0).all()
    assert (fit.counts_V[fit.held_V] > 0).any()
    seen_V = (fit.counts_V > 0) & ~fit.held_V
    torch.testing.assert_close(
        weights_V[seen_V] / weights_V[seen_V].sum(), fit.counts_V[seen_V].sqrt() / fit.counts_V[seen_V].sqrt().sum()
    )
    data = fitting.TypeRows(lm, fit, small())
    assert not fit.held_V[data.ids_U].any()
    expected = EmbeddingCompressor(32, 8).fit_counts(lm.table_VD[seen_V], fit.weights(1.0)[seen_V])
    torch.testing.assert_close(fit.compressor.projection, expected.projection, rtol=1e-3, atol=1e-4)


def test_a_batch_is_dealt_out_to_the_processes(small, lm):
    config = small()
    data = fitting.TypeRows(lm, fitting.make_fit(config, lm, 8), config)
    whole, weight = data.batch(config, 0, 5, 0, 1)
    assert len(whole) == 64
    parts = [data.batch(config, 0, 5, rank, 2) for rank in (0, 1)]
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == sorted(whole.tolist())
    assert all(share == pytest.approx(weight / 2) for _, share in parts)
    assert whole.tolist() != data.batch(replace(config, seed=config.seed + 1), 0, 5, 0, 1)[0].tolist()
    assert whole.tolist() != data.batch(config, 5, 5, 0, 1)[0].tolist()
    epoch = torch.cat([data.batch(config, step, 5, 0, 1)[0] for step in range(5)])
    assert len(set(epoch.tolist())) == len(epoch)


def test_a_stopped_run_goes_on_to_the_same_bits(trained, make, small, tmp_path, monkeypatch):
    saving, calls = Run.saving, []

    def stop_at_seven(self, n):
        calls.append(self.index)
        self.stopping = self.index == 7
        return saving(self, n)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "saving", stop_at_seven)
        with pytest.raises(Stopped):
            make("phase1", small(), tmp_path / "stopped")
    assert max(calls) == 7
    make("phase1", small(), tmp_path / "stopped", resume=True)
    same(trained, tmp_path / "stopped", TIMES)


def test_a_run_says_which_weights_it_read_and_goes_on_with_no_others(make, small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "saving", lambda self, n: setattr(self, "stopping", True) or True)
        with pytest.raises(Stopped):
            make("phase1", small(), tmp_path / "stopped")
    lm = language_model.load_language_model(small(), "cpu")
    assert read_manifest(tmp_path / "stopped")["data_fingerprints"]["model"] == weights_fingerprint(lm.model)
    with torch.no_grad():
        first = next(lm.model.parameters())
        first[0, 0] += 1
    del lm.__dict__["fingerprint"]
    try:
        with pytest.raises(UserError, match="model"):
            make("phase1", small(), tmp_path / "stopped", resume=True)
    finally:
        language_model._loaded.clear()


def test_a_killed_run_goes_on_to_the_same_bits(trained, make, small, tmp_path, monkeypatch):
    """SIGKILL in the first steps, before any checkpoint; after a save; between two; and while it answers."""
    import studycore.run

    cut = tmp_path / "cut"
    places = [
        (train, "gradient", 3),
        (studycore.run, "save_checkpoint", 1),
        (train, "gradient", 4),
        (train, "score", 1),
    ]
    for place in places:
        assert killed_at(*place, lambda: make("phase1", small(), cut, resume=cut.exists())), place
    assert read_json(cut / "manifest.json")["state"] == "running"
    make("phase1", small(), cut, resume=True)
    same(trained, cut, TIMES)


def test_the_losses_are_the_committed_ones(make, small, tmp_path):
    """A change that does not mean to alter the training leaves the series as it is."""
    make("phase1", small(epochs=8, eval_every=2), tmp_path / "series")
    series = [row["loss"] for row in read_rows(tmp_path / "series" / "metrics.jsonl") if row["type"] == "train_step"]
    committed = Path(__file__).parent / "loss_series.json"
    assert series == pytest.approx(json.loads(committed.read_text()), rel=1e-3)


@pytest.mark.parametrize(
    "arm", ["linear", "nearest", "nearest_int4", "int8", "int4", "fewer", "adapter_paragraph", "raw", "shuffled"]
)
def test_every_arm_is_scored_by_the_same_harness(arm, trained, small, make, tmp_path):
    folder = make("evaluate", of(EvaluateConfig, small(), arm=arm, phase1=str(trained)), tmp_path / arm)
    measured, rows = metrics(folder), read_predictions(folder)["questions"]
    assert [q["id"] for q in rows] == [q["id"] for q in read_predictions(trained)["questions"]]
    expected = {
        "linear": 128,
        "nearest": 128,
        "int8": 8 * 8 + 16,
        "int4": 4 * 8 + 16,
        "nearest_int4": 4 * 8 + 16,
        "adapter_paragraph": 128,
        "raw": 512,
        "shuffled": 512,
    }
    if arm in expected:
        assert measured["bits_per_token"] == expected[arm]
    else:  # fewer: of the paragraph's tokens as many bits as the codes have, to less than a token's row
        paragraphs = sum(q["paragraph_tokens"] for q in read_predictions(trained)["questions"])
        assert 128 - 512 * 2 / paragraphs < measured["bits_per_token"] <= 128 + 512 * 2 / paragraphs
    assert {"encode_seconds_per_1000_types", "decode_seconds_per_1000_types"} <= set(measured)
    if arm.startswith("nearest"):
        assert 0 < measured["snap_accuracy"] <= 1
    report = report_on(STUDY, folder)
    assert report.table.iloc[0]["arm"] == arm


def test_answers_of_rows_that_are_the_models_own_are_not_made_again(trained, small, make, tmp_path, monkeypatch):
    raw = make("evaluate", of(EvaluateConfig, small(), arm="raw"), tmp_path / "raw")
    config = of(EvaluateConfig, small(), arm="nearest", phase1=str(trained))
    apart = make("evaluate", config, tmp_path / "apart")
    own = codecs.raw

    def other(table_VD, compressor, bits=16):
        return lambda ids_U: own(table_VD)(ids_U) + (ids_U == ids_U[-1])[:, None]

    def answers(folder):
        return [q["prediction"] for q in read_predictions(folder)["questions"]]

    with monkeypatch.context() as patch:
        patch.setattr(codecs, "nearest", lambda table_VD, compressor, bits=16: own(table_VD))
        patch.setattr(reader.Reader, "answer", None)  # nothing may be answered
        known = make("evaluate", config, tmp_path / "known", needs={"raw": raw})
        assert answers(known) == answers(raw)
        assert "seconds_per_question" in metrics(raw)
        assert "seconds_per_question" not in metrics(known)  # it took none of its own
        patch.setattr(codecs, "nearest", other)  # one row differs
        with pytest.raises(TypeError):
            make("evaluate", config, tmp_path / "other", needs={"raw": raw})
    assert answers(apart)
    for arm in ("nearest", "nearest_int4"):
        assert plan(suite(small, arms=[arm]))[-1].needs == ("selfcheck", "phase1_4x", "raw")


def test_the_checks_have_the_machine_to_themselves(small):
    assert alone(plan(suite(small))) >= {"selfcheck"}


def test_rows_of_an_arm_are_made_once(trained, small, make, tmp_path, monkeypatch):
    """The nearest row costs a pass over the whole table: once for the prompts, not once a question."""
    asked: list[int] = []
    real = codecs.nearest_types

    def counted(codes_VK, z_UK, block=4096):
        asked.append(len(z_UK))
        return real(codes_VK, z_UK, block)

    monkeypatch.setattr(codecs, "nearest_types", counted)
    seconds = itertools.count()
    monkeypatch.setattr(
        evaluation, "clock", lambda device: next(seconds)
    )  # so slow that nothing is timed more often than it must
    config = of(EvaluateConfig, small(), arm="nearest", phase1=str(trained))
    make("evaluate", config, tmp_path / "nearest")
    # The prompts' rows, the share of their types that are found again, and four times the time of 1,000 rows.
    assert len(asked) == 6


def test_ids_and_raw_answer_the_same_token_for_token(small, make, tmp_path):
    rows = [
        read_predictions(make("evaluate", of(EvaluateConfig, small(), arm=arm), tmp_path / arm))["questions"]
        for arm in ("ids", "raw")
    ]
    assert [q["prediction"] for q in rows[0]] == [q["prediction"] for q in rows[1]]
    assert any(q["prediction"] for q in rows[0])


@pytest.mark.parametrize(
    ("objective", "balance"), [("kl", "running_means"), ("prompt_ppl", "gradient_norms"), ("answer_ce", "uncertainty")]
)
def test_phase2_trains_through_the_model_and_logs_both_shares(objective, balance, trained, small, make, tmp_path):
    config = of(Phase2Config, small(), phase1=str(trained), objective=objective, balance=balance, ce_weight=1.0, steps=6,
                phase2_batch_size=2, phase2_lr=3e-3, log_every=1)  # fmt: skip
    folder = make("phase2", config, tmp_path / "phase2")
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["type"] == "train_step"]
    assert len(rows) == 6
    for row in rows:
        assert row["share_reconstruction"] + row[f"share_{objective}"] == pytest.approx(1)
        assert row[f"{objective}_loss"] >= 0
    if balance == "gradient_norms":
        assert rows[0]["share_reconstruction"] == pytest.approx(0.5)
    assert metrics(folder)["due"] is True
    assert (folder / "adapter" / "model.safetensors").read_bytes() != (
        trained / "adapter" / "model.safetensors"
    ).read_bytes()
    weights = torch.cat([p.flatten() for p in Adapter.from_pretrained(folder / "adapter").parameters()])
    assert torch.isfinite(weights).all()


def test_types_that_no_fit_sees_teach_nothing_in_phase2(trained, small, make, tmp_path, monkeypatch):
    masks = []

    def nothing(rows_BTD, taught_BT):
        masks.append(taught_BT)
        return rows_BTD.detach() + 0 * rows_BTD

    monkeypatch.setattr(objectives, "teaching", nothing)
    config = of(Phase2Config, small(), phase1=str(trained), ce_weight=1.0, steps=1, phase2_batch_size=4, log_every=1)
    rows = read_rows(make("phase2", config, tmp_path / "phase2") / "metrics.jsonl")
    assert [row["share_kl"] for row in rows if row["type"] == "train_step"] == [0.0]
    assert 0 < masks[0].float().mean() < 1


def test_phase2_lowers_the_loss_it_trains_on(trained, small, make, tmp_path, monkeypatch):
    real = train.training_prompts

    def two(*arguments):
        questions = real(*arguments)
        return replace(questions, prompts=questions.prompts[:2])

    monkeypatch.setattr(train, "training_prompts", two)
    config = of(Phase2Config, small(), phase1=str(trained), objective="kl", balance="fixed", ce_weight=1.0, recon_weight=1e-6, steps=50,
                phase2_batch_size=2, phase2_lr=1e-2, log_every=1)  # fmt: skip
    rows = [
        row
        for row in read_rows(make("phase2", config, tmp_path / "p") / "metrics.jsonl")
        if row["type"] == "train_step"
    ]
    assert sum(r["kl_loss"] for r in rows[-5:]) < 0.8 * sum(r["kl_loss"] for r in rows[:5])


def test_phase2_is_not_due_above_the_threshold(trained, small, make, tmp_path):
    config = of(Phase2Config, small(), phase1=str(trained), only_below=0.0, ce_weight=1.0)
    folder = make("phase2", config, tmp_path / "phase2")
    assert metrics(folder)["due"] is False
    assert not (folder / "predictions.json").exists()
    report_on(STUDY, folder)
    assert "not due" in (folder / "report.md").read_text()


def test_a_failing_check_stops_what_comes_after(monkeypatch, make, small, tmp_path):
    monkeypatch.setattr(selfcheck, "run_checks", lambda *a: {"table": "", "dtype": "rows were taken"})
    for verb, config in (
        ("selfcheck", of(SelfcheckConfig, small())),
        ("phase1", small()),
        ("evaluate", of(EvaluateConfig, small())),
    ):
        with pytest.raises(UserError, match="selfcheck dtype"):
            make(verb, config, tmp_path / verb)
        assert read_json(tmp_path / verb / "manifest.json")["state"] == "failed"
        assert not (tmp_path / verb / "predictions.json").exists()


def test_random_projections_and_the_original_form_run_too(make, small, tmp_path):
    folder = make(
        "phase1",
        small(compress_method="random", adapter_form="original", adapter_dropout=0.1, compress_dim=5),
        tmp_path / "r",
    )
    assert metrics(folder)["dimensions"] == 5
    fit = make("fit", of(FitConfig, small()), tmp_path / "fit")
    shared = make("phase1", small(), tmp_path / "of_fit", needs={"fit": fit})
    apart = make("phase1", small(), tmp_path / "apart")
    torch.testing.assert_close(metrics(shared)["nmse"], metrics(apart)["nmse"], rtol=1e-4, atol=1e-6)


def test_compressing_the_paragraph_alone_leaves_the_rest(make, small, trained, tmp_path):
    both = [
        make("evaluate", of(EvaluateConfig, small(), arm="linear", phase1=str(trained), scope=scope), tmp_path / scope)
        for scope in ("prompt", "paragraph")
    ]
    answers = [[q["prediction"] for q in read_predictions(folder)["questions"]] for folder in both]
    assert answers[0] != answers[1]
    arms = [
        make(
            "evaluate",
            of(EvaluateConfig, small(), arm=arm, phase1=str(trained), scope=scope),
            tmp_path / f"{arm}_{scope}",
        )
        for arm, scope in (("adapter_paragraph", "prompt"), ("adapter", "paragraph"), ("adapter", "prompt"))
    ]
    of_arm, of_scope, of_prompt = ([q["prediction"] for q in read_predictions(f)["questions"]] for f in arms)
    assert of_arm == of_scope != of_prompt


# ------------------------------------------------------------------------------------------------------- the main job
def suite(small, **more):
    base = {k: v for k, v in to_dict(small()).items() if k not in ("ratio", "ce_weight", "compress_dim")}
    values = {"base": base | {"steps": 2, "phase2_batch_size": 2}, "ratios": [4.0]} | more
    return SuiteConfig(**values)


def test_the_plan_names_every_arm_at_every_ratio(small):
    jobs = {job.name: job for job in plan(suite(small, ratios=[2.0, 16.0]))}
    assert list(jobs)[:6] == ["selfcheck", "fit", "ids", "raw", "question_only", "shuffled"]
    assert {
        f"{arm}_{r}"
        for arm in ("phase1", "linear", "nearest", "int8", "int4", "fewer", "adapter_paragraph", "phase2", "phase2_ppl")
        for r in ("2x", "16x")
    } < set(jobs)
    assert jobs["phase2_16x"].needs == jobs["phase2_ppl_16x"].needs == ("selfcheck", "phase1_16x")
    assert (jobs["phase2_16x"].config.objective, jobs["phase2_ppl_16x"].config.objective) == ("kl", "prompt_ppl")
    assert jobs["phase1_2x"].config.ratio == 2.0
    two = plan(suite(small, seeds=2, arms=["linear"]))
    assert [job.name for job in two if job.arm == "linear"] == ["linear_4x_s0", "linear_4x_s1"]
    assert {job.config.data_seed for job in two} == {0}
    verb, several = sweep_of_seeds(small(), 3)
    assert (verb, several.seeds, several.ratios) == ("run", 3, [4.0])
    plan(several)


@pytest.fixture
def here(monkeypatch):
    """Jobs are done in this process; gives the options of such a run."""
    from studycore import execution

    def in_process(work, values, schedule, stop, processes):
        while names := schedule.take():
            for name, ended in zip(names, work([values[n] for n in names]), strict=True):
                yield from schedule.end(name, ended)

    monkeypatch.setattr(execution, "run_in_processes", in_process)
    return SweepOptions(device="cpu", threads=1, processes=1)


def test_the_run_of_8_billion_parameters_does_on_a_tiny_llama_what_it_will_do_there(
    here, folder, squad_file, tmp_path, monkeypatch
):
    """The shipped configuration in its precision, its gate and all, with another model, a local file, and smaller numbers
    alone."""
    monkeypatch.setattr(selfcheck, "run_checks", RUN_CHECKS)
    from studycore.configuration import check_types, read_yaml

    values = check_types(SuiteConfig, read_yaml(CONFIGS / "llama-8b.yaml"))
    fewer = {"model": str(folder), "dataset": str(squad_file), "eval_samples": 6, "questions_per_paragraph": 2, "examples": 1,
             "max_new_tokens": 3, "samples": 20, "epochs": 1, "steps": 2, "phase2_batch_size": 2, "always_seen": 20}  # fmt: skip
    chosen = SuiteConfig(**(values | {"base": values["base"] | fewer, "ratios": [4.0]}))
    assert chosen.base["dtype"] == "bfloat16"
    make_runs(STUDY, "run", chosen, tmp_path / "run", here)
    arms = read_json(tmp_path / "run" / "results.json")["metrics"]["arms"]
    assert metrics(tmp_path / "run" / "selfcheck") == {"checks": 9, "failing": 0}
    assert set(arms) == {"ids", "raw", "question_only", "shuffled"} | {
        f"{arm}_4x"
        for arm in (
            "adapter",
            "linear",
            "nearest",
            "nearest_int4",
            "int8",
            "int4",
            "fewer",
            "adapter_paragraph",
            "phase2",
            "phase2_ppl",
        )
    }


def test_the_main_job_goes_on_arm_by_arm(here, small, tmp_path, monkeypatch, capsys):
    chosen = suite(small, arms=["linear", "fewer", "phase2"])
    options = here
    real = train.phase2

    def fails(*arguments):
        raise RuntimeError("killed")

    monkeypatch.setattr(train, "phase2", fails)
    with pytest.raises(UserError, match="1 of 10 runs failed, first phase2_4x"):
        make_runs(STUDY, "run", chosen, tmp_path / "run", options)
    stamps = {p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*/predictions.json")}
    assert len(stamps) == 7
    monkeypatch.setattr(train, "phase2", real)
    make_runs(STUDY, "run", chosen, tmp_path / "run", options, resume=True)
    again = {p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*/predictions.json")}
    assert {k: again[k] for k in stamps} == stamps
    results = read_json(tmp_path / "run" / "results.json")
    assert {"adapter_4x", "linear_4x", "fewer_4x", "phase2_4x", "raw"} <= set(results["metrics"]["arms"])
    assert {c["verdict"] for c in results["claims"]} <= {"supported", "refuted", "inconclusive", "not run"}
    assert all(c["registered"] for c in results["claims"])
    text = (tmp_path / "run" / "report.md").read_text()
    for word in ("retention", "token's number", "held out", "bits a token"):
        assert word in text


def test_two_processes_score_exactly_what_one_does(trained, small, tmp_path):
    config = of(EvaluateConfig, small(), arm="linear", phase1=str(trained), eval_batch_size=2)
    flags = [f"--{k}={v}" for k, v in to_dict(config).items() if v is not None]
    scores = []
    for n in (1, 2):
        unchecked = "import sys; import latentwire_adapter.selfcheck as t; t.run_checks = lambda *a: {}; from latentwire_adapter.cli import main; sys.exit(main())"
        folder = tmp_path / f"n{n}"
        command = ["-c", unchecked] if n == 1 else ["-m", "latentwire_adapter"]
        here = ["--device", "cpu", "--threads", "1", "--num-processes", n, "--output-dir", folder]
        output_of(*command, "evaluate", *flags, *here, cwd=tmp_path)
        scores.append(
            [
                {k: q[k] for k in ("id", "prediction", "em", "f1", "error")}
                for q in read_predictions(folder)["questions"]
            ]
        )
    assert scores[0] == scores[1]
    assert replace(CPU, threads=2).threads == 2


@pytest.mark.parametrize("changes", [{"adapter_hidden_mult": 10**6}, {"batch_size": 10**12}], ids=["width", "batch"])
def test_an_adapter_that_cannot_fit_is_refused_with_its_size(small, make, tmp_path, changes):
    with pytest.raises(UserError, match=r"^adapter_hidden_mult: \d+ times 8: .* a batch take [\d,]+ GiB"):
        make("phase1", small(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
