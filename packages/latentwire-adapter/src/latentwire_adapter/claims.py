"""The study's claims, as data, and what they read of a finished run. F1 in points of 100; paragraphs are the units."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentwire_adapter.config import (
    GOOD,
    EvaluateConfig,
    FitConfig,
    Phase1Config,
    Phase2Config,
    SelfcheckConfig,
    SuiteConfig,
    size_name,
)
from latentwire_adapter.evaluation_files import PREDICTIONS, read_predictions
from latentwire_adapter.metrics import retention as retained, token_types
from latentwire_adapter.metrics.token_types import Arrays
from studycore.claims import Claim, Measure, NotRun
from studycore.measures import missing_runs
from studycore.record import read_arrays
from studycore.run_folder import read_results
from studycore.statistics import Interval, ratio_of_sums

if TYPE_CHECKING:
    from pandas import DataFrame

ORIGINAL, OWN = "the original study's plan", "this study"
HOW = f"Paired bootstrap over paragraphs, {retained.RESAMPLES} resamples; scores are means over seeds, and the interval does not contain the spread between seeds."
OVER_TYPES = f"Bootstrap over token types, {token_types.RESAMPLES} resamples."
RETAINED = 0.7
"""Share of the uncompressed prompt's F1 above the negative control: the original study's 70 of 100, made relative."""
COSINE = 0.9
"""The original study's criterion of a good reconstruction."""


# --------------------------------------------------------------------------------------------------------- the table
def questions(table: "DataFrame", arm: str, ratio: str = "") -> list[dict[str, Any]]:
    """The arm's questions, scores averaged over seeds. NotRun without a finished run, and where a seed's is missing."""
    if table.empty or "questions" not in table:
        raise NotRun("No arm has been scored yet.")
    chosen = table[table["arm"] == arm]
    if ratio:
        chosen = chosen[chosen["ratio"] == ratio] if "ratio" in chosen else chosen[:0]
    listed = [rows for rows in chosen["questions"] if isinstance(rows, list)]
    if not listed:
        raise NotRun(f"No run of {arm}{f' at {ratio}' if ratio else ''} has been scored.")
    if lost := [run["run"] for run in missing_runs(table, arm) if run.get("ratio", "") == ratio]:
        raise NotRun(f"Needs all {len(listed) + len(lost)} seeds of {arm}; not finished: {', '.join(lost)}.")
    return retained.over_seeds(listed)


def f1_of(arm: str, ratio: str = "") -> Measure:
    """F1 of an arm."""
    return _measure(
        f"f1({arm}{_at(ratio)})", lambda table: retained.mean_f1(questions(table, arm, ratio)), (arm, ratio)
    )


def difference(treated: tuple[str, str], control: tuple[str, str]) -> Measure:
    """F1 of one (arm, ratio) minus that of another, on the same questions."""
    text = f"f1_difference({treated[0]}{_at(treated[1])} - {control[0]}{_at(control[1])})"
    return _measure(
        text,
        lambda table: retained.difference(questions(table, *treated), questions(table, *control)),
        treated,
        control,
    )


def retention(arm: str, ratio: str) -> Measure:
    """(F1 - negative control) / (uncompressed - negative control)."""

    def compute(table: "DataFrame") -> Interval:
        controls = [questions(table, name) for name in ("question_only", "shuffled")]
        return retained.retention(questions(table, arm, ratio), questions(table, "raw"), controls)

    text = f"retention({arm}{_at(ratio)}, of raw, over the better of question_only and shuffled)"
    return _measure(text, compute, (arm, ratio), ("raw", ""), ("question_only", ""), ("shuffled", ""))


def rank_correlation(arm: str, ratio: str, quality: str = "error") -> Measure:
    """Spearman's, over questions, of F1 with the reconstruction of the paragraph, or (`answer_error`) of the answer's tokens."""
    return _measure(
        f"rank_correlation(-{quality}, f1, {arm}{_at(ratio)})",
        lambda table: retained.rank_correlation(questions(table, arm, ratio), quality),
        (arm, ratio),
    )


def arrays_of(table: "DataFrame", ratio: str, name: str) -> tuple[Arrays, int]:
    """(arrays of token types at a ratio, means over seeds; how many adapters). NotRun where no run has `name` of two or more."""
    chosen = table[(table["arm"] == "adapter") & (table["ratio"] == ratio)] if "ratio" in table else table[:0]
    runs = [arrays for arrays in chosen.get("arrays", []) if len(arrays.get(name, ())) > 1]
    if not runs:
        raise NotRun(f"No adapter at {ratio} has been trained whose run holds {name} of two token types or more.")
    return token_types.mean_over_runs(runs), len(runs)


def unexplained(decoder: str, kind: str, ratio: str, less: str = "") -> Measure:
    """Squared error over squared distance from the mean, by token types' counts; `less`: minus another decoder's."""

    def compute(table: "DataFrame") -> Interval:
        return token_types.unexplained(arrays_of(table, ratio, f"{kind}_count")[0], kind, decoder, less)

    text = f"unexplained({decoder}{f' - {less}' if less else ''}, {kind} types{_at(ratio)})"
    metric = f"{'' if decoder == 'adapter' else 'linear_'}{'' if kind == 'seen' else 'held_out_'}nmse"
    return Measure(text, lambda table: (compute(table), OVER_TYPES), "token types", metric, _of(("adapter", ratio)))


def lead_on_trained_types(ratio: str) -> Measure:
    """How much more the adapter leads over the linear inverse on seen types than on held-out ones that are counted as often."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        arrays, _ = arrays_of(table, ratio, "held_out_count")
        return token_types.lead_on_trained_types(arrays), OVER_TYPES

    bands = ", ".join(token_types.BANDS)
    text = f"unexplained(adapter - linear, seen types - held_out types, by counts {bands}{_at(ratio)})"
    return Measure(text, compute, "token types", "held_out_nmse", _of(("adapter", ratio)))


def cosine(ratio: str) -> Measure:
    """Of the adapter's rows with the model's own, the mean over the token types that the fits saw, by their counts."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        arrays, adapters = arrays_of(table, ratio, "seen_cosine")
        count_U, cosine_U = arrays["seen_count"], arrays["seen_cosine"]
        interval = ratio_of_sums(count_U * cosine_U, count_U, token_types.RESAMPLES)
        return interval, f"{OVER_TYPES.removesuffix('.')}; mean over {adapters} adapter(s)."

    text = f"cosine(adapter, seen types{_at(ratio)}), {token_types.RESAMPLES} resamples"
    return Measure(text, compute, "token types", "recon_cosine_sim", _of(("adapter", ratio)))


def _measure(text: str, compute: Callable[["DataFrame"], Interval], *arms: tuple[str, str]) -> Measure:
    """Of the questions of these arms, each with its ratio, "" where it has none."""
    text = f"{text}, {retained.RESAMPLES} resamples"
    return Measure(text, lambda table: (compute(table), HOW), "paragraphs", "f1", _of(*arms))


def _of(*arms: tuple[str, str]) -> Callable[["DataFrame"], "DataFrame"]:
    """The runs of these arms."""

    def read(table: "DataFrame") -> "DataFrame":
        ratios = table["ratio"].fillna("") if "ratio" in table else [""] * len(table)
        return table[[pair in arms for pair in zip(table["arm"], ratios, strict=True)]]

    return read


def _at(ratio: str) -> str:
    return f" at {ratio}" if ratio else ""


# ----------------------------------------------------------------------------------------------------------- claims
READS = Claim(
    "uncompressed_f1",
    "Given the uncompressed prompt, the model answers with an F1 of 60 or more",
    OWN,
    "80",
    "F1",
    f1_of("raw"),
    above=60.0,
)
CONTROL = Claim(
    "question_only_f1", "Given a question without its paragraph, the model answers with an F1 below 10", OWN, "0", "F1",
    f1_of("question_only"), below=10.0,
)  # fmt: skip
SAME = Claim(
    "embeddings_are_ids", "The F1 of prompts given as embeddings and of the same prompts given as token ids differ by less than 1 point", OWN, "0", "F1 points, size",
    _measure("size_of_difference(raw - ids)", lambda table: _size(retained.difference(questions(table, "raw"), questions(table, "ids"))), ("raw", ""), ("ids", "")),
    below=1.0,
)  # fmt: skip


def _size(x: Interval) -> Interval:
    """The interval of the absolute value."""
    low = 0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
    return Interval(abs(x.estimate), low, max(abs(x.low), abs(x.high)), x.n)


def of_ratio(ratio: str, arms: Sequence[str]) -> list[Claim]:
    """The claims on one ratio, such as 8x."""
    at_ratio = f"At {ratio.removesuffix('x')} times compression"
    ratio_claims = [
        Claim(
            f"f1_{ratio}", f"{at_ratio}, read through an adapter that was trained on reconstruction alone, the model answers with an F1 of {GOOD:g} or more", ORIGINAL, "70 or more", "F1",
            f1_of("adapter", ratio), above=GOOD,
        ),
        Claim(
            f"retention_{ratio}", f"{at_ratio} prompts that are read through the adapter keep {RETAINED:.0%} or more of the F1 that the paragraph adds", OWN,
            "0.7 or more", "retention", retention("adapter", ratio), above=RETAINED,
        ),
        Claim(
            f"cosine_{ratio}", f"{at_ratio} the embeddings that the adapter rebuilds have a mean cosine of {COSINE:g} or more with the model's own", ORIGINAL,
            "above 0.9", "cosine, seen token types by their counts", cosine(ratio), above=COSINE,
        ),
        Claim(
            f"correlation_{ratio}", f"{at_ratio} questions are answered better the smaller the error of their paragraph's rebuilt embeddings is", ORIGINAL,
            "above 0", "Spearman", rank_correlation("adapter", ratio), above=0.0,
        ),
        Claim(
            f"answer_correlation_{ratio}", f"{at_ratio} questions are answered better the smaller the error of the rebuilt embeddings of the answer's tokens is",
            OWN, "above 0", "Spearman", rank_correlation("adapter", ratio, "answer_error"), above=0.0,
        ),
        Claim(
            f"held_out_{ratio}", f"{at_ratio} the adapter rebuilds token types that were left out of its training better than the linear inverse of the same codes does",
            OWN, "below 0", "unexplained variance, difference", unexplained("adapter", "held_out", ratio, less="linear"), below=0.0,
        ),
        Claim(
            f"seen_{ratio}", f"{at_ratio} the adapter rebuilds token types that it was trained on better than the linear inverse of the same codes does",
            OWN, "below 0", "unexplained variance, difference", unexplained("adapter", "seen", ratio, less="linear"), below=0.0,
        ),
        Claim(
            f"remembered_{ratio}", f"{at_ratio} the adapter's lead over the linear inverse is larger on token types that it was trained on than on types that were left out and are as frequent",
            OWN, "below 0", "unexplained variance, difference of differences", lead_on_trained_types(ratio), below=0.0,
        ),
    ]  # fmt: skip
    if "linear" in arms:
        ratio_claims.append(Claim(
            f"adapter_vs_linear_{ratio}", f"{at_ratio} the model answers better through the adapter than through the linear inverse of the same codes", OWN,
            "above 0", "F1 points", difference(("adapter", ratio), ("linear", ratio)), above=0.0,
        ))  # fmt: skip
    if "nearest" in arms:
        ratio_claims.append(Claim(
            f"nearest_{ratio}", f"{at_ratio} prompts keep 95 % or more of the F1 that the paragraph adds, if the receiver replaces each code by the row of its own embedding table whose code is nearest", OWN,
            "1", "retention", retention("nearest", ratio), above=0.95,
        ))  # fmt: skip
    if "nearest_int4" in arms:
        ratio_claims.append(Claim(
            f"nearest_int4_{ratio}", f"{at_ratio} prompts keep 95 % or more of the F1 that the paragraph adds, if codes are sent in 4 bits a dimension and the receiver replaces each by the row of its own embedding table whose code, rounded likewise, is nearest",
            OWN, "none", "retention", retention("nearest_int4", ratio), above=0.95,
        ))  # fmt: skip
    if {"fewer", "adapter_paragraph"} <= set(arms):
        ratio_claims.append(Claim(
            f"fewer_{ratio}", f"{at_ratio} of the paragraph alone, the model answers better through the adapter than from as many bytes of the paragraph's rarest tokens, sent whole", OWN,
            "above 0", "F1 points", difference(("adapter_paragraph", ratio), ("fewer", ratio)), above=0.0,
        ))  # fmt: skip
    for arm, what, source in (
        ("phase2", "through the language model", OWN), ("phase2_ppl", "on the perplexity of the prompt", ORIGINAL),
    ):  # fmt: skip
        if arm in arms:
            ratio_claims.append(Claim(
                f"{arm}_{ratio}", f"{at_ratio} training the adapter further, {what}, raises the F1 above that of training on reconstruction alone", source, "above 0",
                "F1 points", difference((arm, ratio), ("adapter", ratio)), above=0.0,
            ))  # fmt: skip
    return ratio_claims


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """The main job is judged by all; a run of one arm by what it alone can show."""
    if verb == "run":
        assert isinstance(config, SuiteConfig)
        by_ratio = [
            of_ratio(size_name(r), [arm for arm in config.arms if r in config.ratios_of(arm)]) for r in config.ratios
        ]
        return [READS, CONTROL, SAME, *(claim for ratio_claims in by_ratio for claim in ratio_claims)]
    if verb in ("phase1", "phase2", "evaluate"):
        arm = _arm_of(config)
        answers = f"Given prompts as the arm `{arm}` sends them, the model answers with an F1 of {GOOD:g} or more"
        return [Claim("f1", answers, ORIGINAL, "70 or more", "F1", f1_of(arm), above=GOOD)]
    if verb == "selfcheck":
        return [
            Claim(
                "selfcheck",
                "Every check of how prompts are read and answers are scored holds",
                OWN,
                "0 fail",
                "checks that fail",
                _failing(),
                below=0.5,
            )
        ]
    return [
        Claim(
            "kept",
            "Codes of an eighth of the dimensions keep 90 % or more of the variance of the token embeddings",
            ORIGINAL,
            "0.9",
            "share",
            _kept(),
            above=0.9,
        )
    ]


def _of_one_run(text: str, column: str, n: str, units: str, how: str, lacking: str) -> Measure:
    """A figure that has no error: it was counted."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        if table.empty or column not in table:
            raise NotRun(lacking)
        value = float(table[column].iloc[0])
        return Interval(value, value, value, int(table[n].iloc[0])), how

    return Measure(text, compute, units)


def _failing() -> Measure:
    return _of_one_run("failing checks", "failing", "checks", "checks", "Counted.", "The checks have not run.")


def _kept() -> Measure:
    how = "Exact, of the token types counted."
    return _of_one_run("kept_8x", "kept_8x", "types_seen", "token types", how, "No fit is finished.")


# ---------------------------------------------------------------------------------------------- what a run's folder says
def columns(folder: Path, config: Any) -> dict[str, Any]:
    """What claims and tables read of one finished run."""
    metrics = read_results(folder)["metrics"]
    if isinstance(config, SelfcheckConfig):
        return {"arm": "selfcheck", **metrics}
    row: dict[str, Any] = {"arm": _arm_of(config), **metrics}
    if (folder / PREDICTIONS).is_file():
        row["questions"] = read_predictions(folder)["questions"]
    if isinstance(config, Phase1Config):
        row["arrays"] = read_arrays(folder)
    return row


def _arm_of(config: Any) -> str:
    if isinstance(config, Phase2Config):
        return "phase2_ppl" if config.objective == "prompt_ppl" else "phase2"
    if isinstance(config, EvaluateConfig):
        return config.arm
    return "adapter" if isinstance(config, Phase1Config) else "fit" if isinstance(config, FitConfig) else ""
