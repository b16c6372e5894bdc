"""The reports of a run and of the main job, from what their folders hold."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from latentwire_adapter.claims import RETAINED, arrays_of, questions
from latentwire_adapter.config import (
    COMPRESSED,
    GOOD,
    PARTIAL,
    QUESTION,
    THROUGH_MODEL,
    UNCOMPRESSED,
    Reading,
    SuiteConfig,
    size_name,
)
from latentwire_adapter.figures import plot_bars, plot_curve, plot_questions, plot_training, plot_types
from latentwire_adapter.metrics import retention as retained, token_types
from latentwire_adapter.metrics.reconstruction import rows_of
from latentwire_adapter.metrics.token_types import Group
from studycore.claims import NotRun, Wording, listed, said_of, sentences
from studycore.figures import plot_arms
from studycore.record import Record
from studycore.report import NOT_APPLICABLE, Picture, Report, Table, figure_of
from studycore.statistics import Interval


def report(record: Record) -> Report:
    """Of a finished run, or of the main job."""
    if record.verb == "run":
        return report_suite(record)
    return {"selfcheck": report_selfcheck, "fit": report_fit}.get(record.verb, report_arm)(record)


def band(f1: float) -> str:
    """The original study's words for an absolute F1."""
    return (
        "validated"
        if f1 >= GOOD
        else "helped, needs generation-aware training"
        if f1 >= PARTIAL
        else "failed: too lossy, or the wrong adapter"
    )


def optional(compute: Callable[[], Interval]) -> Interval | None:
    """None where a figure's inputs are missing."""
    try:
        return compute()
    except NotRun:
        return None


def shown(interval: Interval | None) -> str | None:
    """A figure with its interval."""
    return None if interval is None else figure_of(interval)


# ------------------------------------------------------------------------------------------------------------ one run
def report_selfcheck(record: Record) -> Report:
    """Of the checks."""
    rows = rows_of(record.folder, "check")
    failing = [row["check"] for row in rows if not row["holds"]]
    answer = f"All {len(rows)} checks hold." if not failing else f"{', '.join(failing)}: does not hold."
    table = Table(
        "Checks",
        ("check", "holds", "what is wrong"),
        [(r["check"], "yes" if r["holds"] else "no", r["wrong"]) for r in rows],
    )
    picture = plot_bars(
        [r["check"] for r in rows],
        [float(r["holds"]) for r in rows],
        "1: holds",
        record.folder / "figures" / "checks.svg",
    )
    return Report(
        f"latentwire-adapter selfcheck: {record.config.model}",
        QUESTION,
        answer,
        [table],
        [Picture(picture, "The checks of the harness.")],
        notes(record.config),
    )


def report_fit(record: Record) -> Report:
    """Of a fit."""
    kept = {k.removeprefix("kept_"): v for k, v in record.metrics.items() if k.startswith("kept_")}
    answer = f"An eighth of the dimensions keeps {kept['8x']:.1%} of the variance of the tokens counted."
    picture = plot_bars(
        list(kept), list(kept.values()), "share of the variance kept", record.folder / "figures" / "kept.svg"
    )
    values = Table("What was counted", ("quantity", "value"), list(record.metrics.items()))
    return Report(
        f"latentwire-adapter fit: {record.config.model}",
        QUESTION,
        answer,
        [values],
        [Picture(picture, "Variance kept, by ratio.")],
        notes(record.config),
    )


def report_arm(record: Record) -> Report:
    """Of one arm."""
    metrics, row = record.metrics, record.table.iloc[0]
    if not metrics.get("due", True):
        text = f"Phase 2 was not due: phase 1's F1 is {metrics['phase1_f1']:.1f}, which is not below {record.config.only_below:g}."
        return Report("latentwire-adapter phase2", QUESTION, text, [], [], notes(record.config))
    asked = row["questions"]
    f1 = optional(lambda: retained.mean_f1(asked))
    answer = f"{row['arm']}: F1 {metrics['f1']:.1f}, EM {metrics['em']:.1f} on {metrics['eval_samples']} questions; by the original study's bands: {band(metrics['f1'])}."
    wrong = [(q["question"], " / ".join(q["answers"]), q["prediction"]) for q in asked if q["f1"] < 1][:20]
    tables = [
        Table("Figures", ("quantity", "value"), [("F1 [95 % over paragraphs]", shown(f1)), *((k, v) for k, v in metrics.items() if isinstance(v, int | float))]),
        Table("Questions that were not answered right", ("question", "right", "answered"), wrong, "The first 20.", folded=True),
    ]  # fmt: skip
    training = rows_of(record.folder, "train_step")
    if record.verb == "phase1" and training:
        picture = Picture(
            plot_training(training, metrics, record.folder / "figures" / "training.svg"),
            "Unexplained variance over training.",
        )
    else:
        right = [
            sum(q["f1"] == 1 for q in asked),
            sum(0 < q["f1"] < 1 for q in asked),
            sum(q["f1"] == 0 for q in asked),
        ]
        picture = Picture(
            plot_bars(["right", "in part", "wrong"], right, "questions", record.folder / "figures" / "questions.svg"),
            "Questions by their F1.",
        )
    return Report(
        f"latentwire-adapter {record.verb}: {row['arm']}", QUESTION, answer, tables, [picture], notes(record.config)
    )


def notes(config: Reading) -> list[str]:
    """Decisions that a reader of the numbers should know."""
    return [
        f"{config.model} reads {config.dataset} ({config.split}), {config.eval_samples} questions, at most {config.questions_per_paragraph} a paragraph, after {config.examples} worked examples. Greedy decoding to the end of the line, {config.max_new_tokens} tokens at most.",
        f"Compressed: the whole {config.scope}. Generated tokens are the model's own rows.",
        "EM and F1 are SQuAD's official ones, the best over the right answers; intervals draw paragraphs, since questions of one are not independent.",
    ]


# ----------------------------------------------------------------------------------------------------------- main job
def report_suite(record: Record) -> Report:
    """Of every arm that is done."""
    table = record.table
    ratios = list(dict.fromkeys(table["ratio"].dropna())) if "ratio" in table else []
    arms = [(arm, "") for arm in UNCOMPRESSED] + [
        (arm, ratio) for ratio in ratios for arm in dict.fromkeys(table[table["ratio"] == ratio]["arm"])
    ]
    lines: list[Sequence[Any]] = []
    drawn: list[tuple[str, str, Interval, Interval | None]] = []
    curves: dict[str, dict[float, Interval]] = {}
    metrics: dict[str, dict[str, Any]] = {}
    for arm, ratio in arms:
        try:
            asked = questions(table, arm, ratio)
        except NotRun:
            continue
        rows = table[(table["arm"] == arm) & ((table["ratio"] == ratio) if ratio else True)]
        f1, kept = retained.mean_f1(asked), retention_of(record, asked)
        em = sum(q["em"] for q in asked) * 100 / len(asked)
        bits, size = float(rows["bits_per_token"].mean()), float(rows["receiver_bytes"].mean()) / 1e6
        times = [_two_digits(_mean(rows, f"{step}_seconds_per_1000_types", 1e3)) for step in ("encode", "decode")]
        drawn.append((arm, ratio, f1, kept))
        lines.append(
            (
                f"{arm} {ratio}".strip(),
                shown(f1),
                em,
                shown(kept),
                bits,
                size,
                *((NOT_APPLICABLE, NOT_APPLICABLE) if arm == "ids" else times),
                band(f1.estimate).split(",")[0].split(":")[0],
            )
        )
        metrics[f"{arm}_{ratio}".strip("_")] = {
            "f1": f1.estimate,
            "em": em,
            "bits_per_token": bits,
            **({} if kept is None else {"retention": kept.estimate}),
        }
        if ratio:
            curves.setdefault(arm, {})[float(ratio.removesuffix("x"))] = f1
    levels: dict[str, float] = {
        arm: metrics[arm]["f1"] for arm in ("raw", "question_only", "shuffled") if arm in metrics
    }
    main_table = Table(
        "Arms", ("arm", "F1", "EM", "retention", "bits a token", "receiver, MB", "encode, ms", "decode, ms", "band"), lines,
        "Brackets: 95 %, paragraphs drawn. Retention: 0 is the better negative control, 1 the uncompressed prompt. Bits: 16 a float, side channels included, of all tokens; in `fewer` and `adapter_paragraph`, which leave the question and the examples whole, of the paragraph's tokens alone. Receiver: what it stores besides the model's layers. Encode, decode: milliseconds for 1,000 tokens, the quickest of several tries while other arms ran. Band: the original study's, by the F1 itself, from 70 and from 50 on.",
    )  # fmt: skip
    pictures = [
        Picture(
            plot_curve(curves, levels, record.folder / "figures" / "curve.svg"),
            "How well questions are answered (F1, 100: every answer right) after each token's embedding was compressed, by how many times smaller its code is, with 95 % intervals over paragraphs. Dashed: the uncompressed prompt; dotted: without the paragraph; dots and dashes: with another one.",
        ),
        Picture(
            plot_arms(
                [arm for arm, *_ in drawn],
                {"F1": {"F1": [f1 for *_, f1, _ in drawn]}, "retention": {"retention": [kept for *_, kept in drawn]}},
                record.folder / "figures" / "arms.svg",
                [ratio or "no compressor" for _, ratio, *_ in drawn],
            ),
            "F1 and retention of every arm, with 95 % intervals over paragraphs.",
            main_table,
        ),
    ]
    by_error = {
        (arm, ratio): questions(table, arm, ratio)
        for arm, ratio in arms
        if f"{arm}_{ratio}" in metrics and arm in ("linear", "adapter", *THROUGH_MODEL)
    }
    if any("error" in q for asked in by_error.values() for q in asked):
        pictures.append(
            Picture(
                plot_questions(by_error, record.folder / "figures" / "questions.svg"),
                "F1 of questions in five groups of equal size, by how well their paragraph came back; a colour an arm, a mark a ratio.",
            )
        )
    if by_ratio := types_of(record, ratios):
        pictures.append(picture_of_types(by_ratio, record.folder))
    tables = [reconstruction_table(record, ratios), ledger_table(record)]
    text_notes = [
        *figures_in_words(record, metrics, ratios),
        *notes(first_reading(record)),
        *left_out(record.config),
        seeds_in_words(record.config.seeds),
        *explanations(),
    ]
    counted = {"runs": len(table), "failed": len(record.missing), "arms": metrics}
    return Report(
        "latentwire-adapter: what survives",
        QUESTION,
        answer_of(record.claims, record.config.ratios),
        tables,
        pictures,
        text_notes,
        counted,
    )


def _mean(rows: Any, name: str, factor: float) -> float | None:
    value = rows[name].mean() * factor if name in rows else float("nan")
    return None if value != value else float(value)


def _two_digits(value: float | None) -> float | None:
    """A time, which says no more."""
    return value and round(value, 1 - math.floor(math.log10(value)))


def retention_of(record: Record, asked: Sequence[Mapping[str, Any]]) -> Interval | None:
    """Of an arm's questions; None where a control is missing."""
    return optional(lambda: retained.retention(
        asked, questions(record.table, "raw"), [questions(record.table, name) for name in ("question_only", "shuffled")]
    ))  # fmt: skip


def first_reading(record: Record) -> Reading:
    """What all arms share, from the settings of the whole."""
    names = set(Reading.__dataclass_fields__)
    return Reading(**{name: value for name, value in record.config.base.items() if name in names})


def reconstruction_table(record: Record, ratios: Sequence[str]) -> Table:
    """Unexplained variance of adapter and linear inverse, and F1 by whether the answer's tokens were seen."""
    lines = []
    for ratio in ratios:
        rows = record.table[(record.table["arm"] == "adapter") & (record.table["ratio"] == ratio)]
        if rows.empty:
            continue
        cells: list[Any] = [
            _mean(rows, name, 1.0)
            for name in (
                "linear_nmse",
                "nmse",
                "linear_held_out_nmse",
                "held_out_nmse",
                "recon_cosine_sim",
                "norm_ratio",
            )
        ]
        for arm in ("linear", "adapter"):
            asked = optional_questions(record, arm, ratio)
            for seen in (True, False):
                scores = [100 * q["f1"] for q in asked if q.get("answer_seen") is seen]
                cells.append(
                    f"{sum(scores) / len(scores):.1f} (n {len(scores)})"
                    if scores
                    else NOT_APPLICABLE
                    if asked
                    else None
                )
        lines.append((ratio, *cells))
    columns = (
        "ratio", "unexplained, seen: linear", "adapter", "held out: linear", "adapter", "cosine", "norm ratio",
        "F1, answer seen: linear", "held out", "F1, answer seen: adapter", "held out",
    )  # fmt: skip
    note = "Seen: token types that the fits were given, by their counts. Held out: types that no fit saw. An adapter that is better than the linear inverse on seen types alone remembers types. Cosine and norm ratio: of the adapter, on seen types."
    return Table("Reconstruction: what is remembered and what carries over", columns, lines, note)


def types_of(record: Record, ratios: Sequence[str]) -> dict[str, list[Group]]:
    """Ratio -> token types by how often they are counted, of ratios whose adapter is trained."""
    groups = {}
    for ratio in ratios:
        try:
            groups[ratio] = token_types.by_count(arrays_of(record.table, ratio, "seen_count")[0])
        except NotRun:
            continue
    return groups


def picture_of_types(by_ratio: Mapping[str, Sequence[Group]], folder: Path) -> Picture:
    """What the counts cover and what the adapter remembers, and the figures behind it."""
    lines = []
    for ratio, groups in by_ratio.items():
        measured = {(g.band, g.kind, g.decoder): g.unexplained for g in groups}
        for counts in dict.fromkeys(g.band for g in groups):
            cells: list[Any] = []
            for kind in token_types.KINDS:
                values = [measured.get((counts, kind, decoder)) for decoder in token_types.DECODERS]
                cells += [
                    NOT_APPLICABLE if values[0] is None else values[0].n,
                    *(shown(v) or NOT_APPLICABLE for v in values),
                ]
            lines.append((ratio, counts, *cells))
    columns = ("ratio", "count", "seen types", "linear", "adapter", "held-out types", "linear", "adapter")
    table = Table("Unexplained variance by count", columns, lines, "Brackets: 95 %, token types drawn.", folded=True)
    return Picture(
        plot_types(by_ratio, folder / "figures" / "types.svg"),
        "How much of the embeddings' variance stays unexplained, by how often a token type is counted, with 95 % intervals over types. Prompts are counted whole and the further text at a share, so types below 1 stand in the further text alone. Where filled and hollow marks of one colour agree, a decoder does as well on types that no fit saw; where the filled one is lower, it remembers types. From left to right: what more weight in the fit is worth.",
        table,
    )  # fmt: skip


def optional_questions(record: Record, arm: str, ratio: str) -> list[dict[str, Any]]:
    """Empty where the arm has not run."""
    try:
        return questions(record.table, arm, ratio)
    except NotRun:
        return []


def ledger_table(record: Record) -> Table:
    """Other ways to send a token."""
    fits = record.table[record.table["arm"] == "fit"] if "token_id_bits" in record.table else record.table[:0]
    names = {
        "token_id_bits": "the token's number",
        "unigram_entropy_bits": "its information under the unigram model",
        "text_bits": "its text in UTF-8",
    }
    lines = [(words, float(fits[name].iloc[0])) for name, words in names.items()] if len(fits) else []
    return Table(
        "Other ways to send a token",
        ("way", "bits a token"),
        lines,
        "Who holds the model holds its table: a token's number says which row is meant, without loss.",
    )


def left_out(suite: SuiteConfig) -> list[str]:
    """Which arms were not asked for, and at which ratios; nothing where all were."""
    parts = []
    for arm in (name for name in (*COMPRESSED, *THROUGH_MODEL) if name != "adapter"):  # it is in every run
        done = suite.ratios_of(arm) if arm in suite.arms else []
        missing = [size_name(ratio) for ratio in suite.ratios if ratio not in done]
        if missing:
            parts.append(arm if not done else f"{arm} at {listed(missing)}")
    return [f"Not asked for, by the settings `arms` and `only`: {'; '.join(parts)}."] if parts else []


def seeds_in_words(seeds: int) -> str:
    """What the intervals do not hold."""
    return (
        "Each ratio has one adapter, of one seed: no interval says how much the adapter of another seed would differ."
        if seeds == 1
        else f"Scores are means over the adapters of {seeds} seeds; the intervals do not contain the spread between seeds."
    )


def explanations() -> list[str]:
    """What dimension reduction by token can and cannot win."""
    return [
        "A code of fewer dimensions is never a shorter message than the token's number: a receiver that has the model has its embedding table. A code can save storing that table, and it can show how much error in its embeddings a model bears.",
        "Decoding to the nearest row needs the receiver's whole table, so that its code is only a long name for a token.",
        "The worked examples are sent once for all questions and are not counted. They are compressed like the rest of the prompt, except in `fewer` and `adapter_paragraph`, which are compared with each other: these leave the examples and the question whole.",
    ]


NEAREST = Wording(
    "compressed {which} times, at least 95 % survives if each vector is replaced by the nearest of the model's own, with nothing trained",
    "compressed {which} times, the nearest vector loses more than 5 %",
    "what survives {which} times with the nearest of the model's own vectors stays open",
    "the nearest of the model's own vectors was not run at {which} times",
)
ADAPTER = Wording(
    "the trained adapter keeps {bar} or more at {{which}} times",
    "the trained adapter keeps less than {bar} at {{which}} times",
    "whether the trained adapter keeps {bar} at {{which}} times stays open",
    "the trained adapter was not run at {{which}} times",
)


def answer_of(claims: Sequence[Mapping[str, Any]], ratios: Sequence[float]) -> str:
    """How much survives, by the verdicts on the nearest row and on the adapter at every ratio."""
    adapter = Wording(*(text.format(bar=f"{100 * RETAINED:.0f} %") for text in astuple(ADAPTER)))
    answer = sentences(
        said_of(claims, {f"nearest_{size_name(ratio)}": f"{ratio:g}" for ratio in ratios}, NEAREST),
        said_of(claims, {f"retention_{size_name(ratio)}": f"{ratio:g}" for ratio in ratios}, adapter),
    )
    return answer or "No arm has been judged yet."


def figures_in_words(record: Record, metrics: Mapping[str, Any], ratios: Sequence[str]) -> list[str]:
    """F1 of the adapter and of the linear inverse beside the uncompressed prompt's, and what carries over."""
    if "raw" not in metrics or not ratios:
        return ["The uncompressed prompt has not been scored yet."]
    parts = [
        f"{r}: adapter {metrics[f'adapter_{r}']['f1']:.1f} ({band(metrics[f'adapter_{r}']['f1']).split(',')[0].split(':')[0]})"
        + (f", linear inverse {metrics[f'linear_{r}']['f1']:.1f}" if f"linear_{r}" in metrics else "")
        for r in ratios if f"adapter_{r}" in metrics
    ]  # fmt: skip
    text = f"Uncompressed F1 {metrics['raw']['f1']:.1f}; {'; '.join(parts)}."
    return [text, *filter(None, [sentence_on_types(record, ratios), sentence_on_shares(record)])]


HELD_OUT = Wording(
    "on token types that no fit saw the adapter reconstructs better than the linear inverse of the same codes at {which}",
    "on such types it reconstructs worse than the linear inverse at {which}",
    "which of the two is better on types that no fit saw stays open at {which}",
    "reconstruction of types that no fit saw was not measured at {which}",
)


def sentence_on_types(record: Record, ratios: Sequence[str]) -> str:
    """What the verdicts say on token types that no fit saw, with the unexplained variance of adapter and linear inverse."""
    names: dict[str, str] = {}
    for ratio in ratios:
        rows = record.table[(record.table["arm"] == "adapter") & (record.table["ratio"] == ratio)]
        adapter, linear = _mean(rows, "held_out_nmse", 1.0), _mean(rows, "linear_held_out_nmse", 1.0)
        figures = "" if adapter is None or linear is None else f" ({adapter:.3f} against {linear:.3f} unexplained)"
        names[f"held_out_{ratio}"] = f"{ratio}{figures}"
    return sentences(said_of(record.claims, names, HELD_OUT))


def sentence_on_shares(record: Record) -> str:
    """How much of the gradient the loss through the model had in phase 2: the original study's imbalance of its two terms."""
    parts = []
    for row in record.table[record.table["arm"].isin(THROUGH_MODEL)].to_dict("records"):
        logged = rows_of(Path(row["folder"]), "train_step") if "folder" in row else []
        shares = [value for step in logged for name, value in step.items() if name.startswith("share_") and name != "share_reconstruction"]  # fmt: skip
        if shares:
            parts.append(f"{row['arm']} {row['ratio']} {100 * min(shares):.0f} to {100 * max(shares):.0f} %")
    return f"Share of the gradient that the loss through the model had: {'; '.join(parts)}." if parts else ""
