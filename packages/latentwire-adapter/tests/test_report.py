"""What feeds which cell, sentence, bar and line of the reports: every figure has a value of its own here."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import latentwire_adapter.figures as figures
import latentwire_adapter.report as reports
from latentwire_adapter.config import COMPRESSED, THROUGH_MODEL, EvaluateConfig, FitConfig, SuiteConfig
from latentwire_adapter.metrics.token_types import Group
from latentwire_adapter.report import answer_of, band, left_out, report
from studycore.record import Record
from studycore.statistics import Interval
from studycore.testing.fabricated import every_verdict, judged_as


def asked(scores, exact, seen=None):
    """Eight questions of four paragraphs."""
    return [
        {
            "id": str(i), "paragraph": f"p{i // 2}", "question": f"q{i}", "answers": ["x", "y"], "prediction": f"said {i}",
            "f1": f1, "em": float(i < exact), **({} if seen is None else {"answer_seen": i in seen}),
        }
        for i, f1 in enumerate(scores)
    ]  # fmt: skip


ADAPTER = asked([1, 1, 1, 0.5, 1, 0.6, 0.7, 0.2], 4, seen={0, 1, 2, 3, 4, 5})


def suite_table():
    """A main job at one ratio."""
    costs = {"bits_per_token": 512.0, "receiver_bytes": 0.0}
    return pd.DataFrame([
        {"arm": "fit", "token_id_bits": 16.0, "unigram_entropy_bits": 9.5, "text_bits": 30.0},
        {"arm": "raw", "questions": asked([1.0] * 8, 7), **costs},
        {"arm": "question_only", "questions": asked([0.0] * 8, 0), **costs},
        {"arm": "shuffled", "questions": asked([0.2] * 8, 0), **costs},
        {"arm": "adapter", "ratio": "4x", "questions": ADAPTER, "bits_per_token": 128.0, "receiver_bytes": 3.5e6,
         "encode_seconds_per_1000_types": 0.001, "decode_seconds_per_1000_types": 0.002, "linear_nmse": 0.4, "nmse": 0.3,
         "linear_held_out_nmse": 0.6, "held_out_nmse": 0.5, "recon_cosine_sim": 0.8, "norm_ratio": 0.9},
        {"arm": "linear", "ratio": "4x", "questions": asked([0.5] * 7 + [0.1], 0, seen={0, 7}), **costs},
    ])  # fmt: skip


def record_of(place, table, verb="run", config=None, claims=(), **metrics):
    config = config or SuiteConfig(ratios=[4.0])
    return Record(place, verb, config, {"state": "done"}, metrics, table, {}, [], None, claims)


def test_the_original_bands_begin_at_their_thresholds():
    assert band(70.0) == "validated"
    assert band(69.9) == band(50.0) == "helped, needs generation-aware training"
    assert band(49.9).startswith("failed")


def test_every_cell_of_the_main_jobs_tables(tmp_path):
    made = report(record_of(tmp_path, suite_table(), claims=[judged_as("held_out_4x", "supported")]))
    rebuilt, other = made.tables
    arms = made.pictures[1].table
    assert (made.pictures[1].path, made.pictures[1].path.is_file()) == (tmp_path / "figures" / "arms.svg", True)
    lines = {line[0]: line for line in arms.rows}
    _, f1, em, kept, bits, size, encode, decode, words = lines["adapter 4x"]
    assert (em, bits, size, encode, decode, words) == (50, 128, 3.5, pytest.approx(1), pytest.approx(2), "validated")
    assert arms.columns[6:8] == ("encode, ms", "decode, ms")
    assert f1.split()[0] == "75"
    assert kept.split()[0] == "0.69"  # (75 - 20) / (100 - 20): the better control is the shuffled one
    assert lines["raw"][2] == 87.5
    assert lines["raw"][6] is None
    assert lines["linear 4x"][-1] == "failed"
    (line,) = rebuilt.rows
    assert line == ("4x", 0.4, 0.3, 0.6, 0.5, 0.8, 0.9, "30.0 (n 2)", "50.0 (n 6)", "85.0 (n 6)", "45.0 (n 2)")
    assert [i for i, column in enumerate(rebuilt.columns) if "linear" in column] == [1, 3, 7]
    assert other.rows == [
        ("the token's number", 16.0), ("its information under the unigram model", 9.5), ("its text in UTF-8", 30.0),
    ]  # fmt: skip
    assert made.notes[0] == "Uncompressed F1 100.0; 4x: adapter 75.0 (validated), linear inverse 45.0."
    assert any(note.startswith("Each ratio has one adapter, of one seed") for note in made.notes)
    several = record_of(tmp_path, suite_table(), config=SuiteConfig(ratios=[4.0], seeds=3))
    assert any("means over the adapters of 3 seeds" in note for note in report(several).notes)
    assert made.notes[1] == (
        "On token types that no fit saw the adapter reconstructs better than the linear inverse of the same codes at 4x "
        "(0.500 against 0.600 unexplained)."
    )
    assert made.metrics["arms"]["adapter_4x"] == {
        "f1": 75.0, "em": 50.0, "bits_per_token": 128.0, "retention": pytest.approx(0.6875),
    }  # fmt: skip


def test_words_on_held_out_types_follow_the_verdict_and_not_the_figures(tmp_path):
    """0.500 against 0.600 is no win where the interval holds zero."""
    expected = {"inconclusive": "stays open at 4x", "refuted": "reconstructs worse", "not run": "was not measured"}
    for verdict, words in expected.items():
        record = record_of(tmp_path, suite_table(), claims=[judged_as("held_out_4x", verdict)])
        text = reports.sentence_on_types(record, ["4x"])
        assert words in text and "reconstructs better" not in text


def test_the_share_of_the_loss_through_the_model_is_that_of_the_runs_logs(tmp_path):
    for arm, shares in (("phase2", (0.74, 0.99)), ("phase2_ppl", (0.5,))):
        (tmp_path / arm).mkdir()
        rows = [{"step": 0, "type": "train_step", "share_reconstruction": 1 - x, f"share_{arm}": x} for x in shares]
        (tmp_path / arm / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pd.DataFrame([{"arm": a, "ratio": "4x", "folder": str(tmp_path / a)} for a in ("phase2", "phase2_ppl")])
    text = reports.sentence_on_shares(record_of(tmp_path, table))
    assert (
        text
        == "Share of the gradient that the loss through the model had: phase2 4x 74 to 99 %; phase2_ppl 4x 50 to 50 %."
    )
    assert reports.sentence_on_shares(record_of(tmp_path, suite_table())) == ""


def test_the_answer_is_worded_by_its_verdicts():
    ids = ("nearest_4x", "nearest_8x", "retention_4x", "retention_8x")
    for claims in every_verdict(*ids):
        four, eight, kept_four, kept_eight = (claim["verdict"] for claim in claims)
        text = answer_of(claims, [4.0, 8.0])
        assert len(text.split()) <= (45 if (four, kept_four) == (eight, kept_eight) else 60), text
        assert "{" not in text
    assert answer_of([judged_as(id_, "supported") for id_ in ids], [4.0, 8.0]) == (
        "Compressed 4 and 8 times, at least 95 % survives if each vector is replaced by the nearest of the model's own, with "
        "nothing trained. The trained adapter keeps 70 % or more at 4 and 8 times."
    )
    mixed = [judged_as("nearest_4x", "supported"), judged_as("nearest_8x", "refuted")]
    mixed += [judged_as("retention_4x", "not run"), judged_as("retention_8x", "refuted")]
    assert answer_of(mixed, [4.0, 8.0]) == (
        "Compressed 4 times, at least 95 % survives if each vector is replaced by the nearest of the model's own, with nothing "
        "trained; compressed 8 times, the nearest vector loses more than 5 %. The "
        "trained adapter keeps less than 70 % at 8 times; the trained adapter was not run at 4 times."
    )
    assert "stays open" in answer_of([judged_as("retention_4x", "inconclusive")], [4.0])
    assert answer_of([], [4.0]) == "No arm has been judged yet."


def test_a_report_of_one_arm_counts_and_lists_its_questions(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        reports, "plot_bars", lambda names, values, label, path: drawn.update(zip(names, values, strict=True)) or path
    )
    asked_here = [*ADAPTER[:7], {**ADAPTER[7], "f1": 0.0}]
    table = pd.DataFrame([{"arm": "linear", "questions": asked_here}])
    made = report(record_of(tmp_path, table, "evaluate", EvaluateConfig(), f1=72.5, em=50.0, eval_samples=8))
    assert drawn == {"right": 4, "in part": 3, "wrong": 1}
    assert [row[0] for row in made.tables[1].rows] == ["q3", "q5", "q6", "q7"]
    assert made.tables[1].rows[0] == ("q3", "x / y", "said 3")
    assert "linear: F1 72.5, EM 50.0 on 8 questions" in made.answer
    fit = report(record_of(tmp_path, table, "fit", FitConfig(), kept_8x=0.625, kept_4x=0.9))
    assert "An eighth of the dimensions keeps 62.5%" in fit.answer
    assert drawn == {"right": 4, "in part": 3, "wrong": 1, "8x": 0.625, "4x": 0.9}


def test_token_types_are_drawn_and_listed_by_their_counts(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(reports, "plot_types", lambda ratios, path: drawn.update(ratios) or path)
    counts = {"seen_count": np.repeat([0.5, 5000.0], 20), "held_out_count": np.full(40, 0.5)}
    spreads = {"seen_spread": np.ones(40), "held_out_spread": np.ones(40)}
    errors = {"seen_linear": 0.5, "seen_adapter": 0.1, "held_out_linear": 0.625, "held_out_adapter": 0.75}
    arrays = counts | spreads | {name: np.full(40, value) for name, value in errors.items()}
    one, other = suite_table(), suite_table()
    one["arrays"] = one["arm"].map(lambda arm: arrays if arm == "adapter" else None)
    made = report(record_of(tmp_path, one))
    (picture,) = [picture for picture in made.pictures if picture.path.name == "types.svg"]
    assert picture.table.rows == [
        ("4x", "below 1", 20, "0.5 [0.5, 0.5]", "0.1 [0.1, 0.1]", 40, "0.625 [0.625, 0.625]", "0.75 [0.75, 0.75]"),
        ("4x", "1,000 or more", 20, "0.5 [0.5, 0.5]", "0.1 [0.1, 0.1]", *[reports.NOT_APPLICABLE] * 3),
    ]
    assert list(drawn) == ["4x"] and len(drawn["4x"]) == 6
    assert "types.svg" not in [picture.path.name for picture in report(record_of(tmp_path, other)).pictures]


@pytest.fixture
def axes(monkeypatch):
    """The axes of the last figure."""
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure.axes[0]) or path)
    yield drawn
    plt.close("all")


def test_the_curve_has_each_arms_interval_and_the_levels(axes, tmp_path):
    curves = {"adapter": {8.0: Interval(60, 50, 65, 9), 4.0: Interval(80, 72, 84, 9)}}
    figures.plot_curve(curves, {"raw": 90.0, "shuffled": 3.0}, tmp_path / "x")
    line, _, (bars,) = axes[-1].containers[0]
    assert list(line.get_ydata()) == [80, 60]
    assert [[y for _, y in segment] for segment in bars.get_segments()] == [[72, 84], [50, 65]]
    levels = {line.get_label(): line.get_ydata()[0] for line in axes[-1].lines if line.get_linestyle() != "None"}
    assert (levels["uncompressed prompt"], levels["another paragraph"]) == (90, 3)


def test_no_two_arms_look_alike_and_each_has_a_name(axes, tmp_path):
    every = (*COMPRESSED, *THROUGH_MODEL)
    figures.plot_curve({arm: {4.0: Interval(50, 40, 60, 9)} for arm in every}, {}, tmp_path / "x")
    looks = [(c[0].get_marker(), c[0].get_color()) for c in axes[-1].containers]
    assert len(set(looks)) == len(every)
    texts = [text.get_text() for text in axes[-1].figure.legends[0].get_texts()]
    assert len(set(texts)) == len(every) and not set(texts) & set(every)


def test_arms_at_the_same_place_of_the_curve_do_not_cover_each_other(axes, tmp_path):
    nothing = {4.0: Interval(0, 0, 0, 9), 8.0: Interval(0, 0, 0, 9)}
    figures.plot_curve(dict.fromkeys(("nearest", "linear", "fewer"), nothing), {"raw": 90.0}, tmp_path / "x")
    places = sorted(x for container in axes[-1].containers for x in container[0].get_xdata())
    assert len(places) == 6 and min(np.diff(places)) > 0.2
    (legend,) = axes[-1].figure.legends
    assert axes[-1].get_legend() is None
    assert len(legend.get_texts()) == 4


def test_training_and_questions_are_drawn_from_their_columns(axes, tmp_path):
    rows = [{"step": 0, "nmse": 0.5, "held_out_nmse": 0.7}, {"step": 4, "nmse": 0.3, "held_out_nmse": 0.6}]
    figures.plot_training(rows, {"linear_nmse": 0.55, "linear_held_out_nmse": 0.75}, tmp_path / "x")
    drawn = {line.get_label(): list(np.unique(line.get_ydata())) for line in axes[-1].lines}
    assert drawn == {
        "adapter, seen types": [0.3, 0.5], "linear inverse, seen types": [0.55],
        "adapter, held-out types": [0.6, 0.7], "linear inverse, held-out types": [0.75],
    }  # fmt: skip
    asked_here = [{"error": e / 10, "f1": 1 - e / 10} for e in (9, 1, 0, 8, 2, 3, 7, 4, 5, 6)]
    figures.plot_questions({("linear", "8x"): asked_here}, tmp_path / "x")
    (line,) = axes[-1].lines
    assert line.get_xdata() == pytest.approx([0.05, 0.25, 0.45, 0.65, 0.85])
    assert line.get_ydata() == pytest.approx([95, 75, 55, 35, 15])


def test_the_types_of_each_decoder_and_kind_have_a_look_of_their_own(axes, tmp_path):
    values = {("linear", "seen"): 0.5, ("linear", "held_out"): 0.6, ("adapter", "seen"): 0.1, ("adapter", "held_out"): 0.7}  # fmt: skip
    groups = [Group("1 to 10", kind, d, Interval(v, v - 0.1, v + 0.05, 9)) for (d, kind), v in values.items()]
    figures.plot_types(
        {"4x": groups, "8x": [*groups[:2], replace(groups[2], unexplained=Interval(0.9, 0.9, 0.9, 9))]}, tmp_path / "x"
    )
    lines = [container[0] for container in axes[-1].containers]
    assert [line.get_ydata()[0] for line in lines] == [0.5, 0.6, 0.1, 0.7]
    assert len({line.get_xdata()[0] for line in lines}) == 4
    looks = [(line.get_marker(), line.get_color(), line.get_markerfacecolor()) for line in lines]
    assert len(set(looks)) == 4 and [face == "white" for *_, face in looks] == [False, True, False, True]
    assert looks[0][:2] == looks[1][:2] != looks[2][:2]
    _, _, (bars,) = axes[-1].containers[0]
    assert [[y for _, y in segment] for segment in bars.get_segments()] == [[pytest.approx(0.4), pytest.approx(0.55)]]
    assert [text.get_text() for text in axes[-1].get_xticklabels()] == ["1 to 10"]
    assert [panel.get_title() for panel in axes[-1].figure.axes] == ["4 times smaller", "8 times smaller"]
    low, high = axes[-1].get_ylim()
    assert low == 0 and high > 0.9


def test_a_table_without_ratios_still_says_that_nothing_is_scored(tmp_path):
    nothing = replace(record_of(tmp_path, suite_table()[:1]), missing={"raw": "failed"})
    made = report(nothing)
    assert made.answer == "No arm has been judged yet."
    assert made.notes[0] == "The uncompressed prompt has not been scored yet."
    assert made.metrics["failed"] == 1


def test_the_report_names_the_arms_that_were_not_asked_for():
    whole = SuiteConfig(ratios=[2.0, 4.0])
    assert left_out(whole) == []
    some = SuiteConfig(ratios=[2.0, 4.0, 8.0], arms=["adapter", "linear", "int8"], only={"int8": [4.0]})
    (note,) = left_out(some)
    assert note.startswith("Not asked for") and "int8 at 2x and 8x; int4; " in note and "linear" not in note
