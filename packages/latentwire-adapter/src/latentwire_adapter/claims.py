"""The study's claims, as data, and what they read of a finished run. F1 in points of 100; paragraphs are the units."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
from latentwire_adapter.metrics import retention as retained
from studycore.claims import Claim, Measure, NotRun
from studycore.files import read_json
from studycore.measures import missing_runs
from studycore.record import read_arrays
from studycore.statistics import Interval, bootstrap

if TYPE_CHECKING:
    from pandas import DataFrame

ORIGINAL, OWN = "the original study's plan", "this study"
HOW = f"Paired bootstrap over paragraphs, {retained.RESAMPLES} resamples; scores are means over seeds, whose spread is not in it."
TYPE_RESAMPLES = 500
"""Of token types, of which there are tens of thousands: their intervals are narrow, and each resample costs as many draws."""
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
    return _measure(f"f1({arm}{_at(ratio)})", lambda table: retained.mean_f1(questions(table, arm, ratio)))


def difference(treated: tuple[str, str], control: tuple[str, str]) -> Measure:
    """F1 of one (arm, ratio) minus that of another, on the same questions."""
    text = f"f1_difference({treated[0]}{_at(treated[1])} - {control[0]}{_at(control[1])})"
    return _measure(text, lambda table: retained.difference(questions(table, *treated), questions(table, *control)))


def retention(arm: str, ratio: str) -> Measure:
    """(F1 - negative control) / (uncompressed - negative control)."""

    def compute(table: "DataFrame") -> Interval:
        controls = [questions(table, name) for name in ("question_only", "shuffled")]
        return retained.retention(questions(table, arm, ratio), questions(table, "raw"), controls)

    return _measure(f"retention({arm}{_at(ratio)}, of raw, over the better of question_only and shuffled)", compute)


def rank_correlation(arm: str, ratio: str, quality: str = "error") -> Measure:
    """Spearman's, over questions, of F1 with the reconstruction of the paragraph, or (`answer_error`) of the answer's tokens."""
    return _measure(
        f"rank_correlation(-{quality}, f1, {arm}{_at(ratio)})",
        lambda table: retained.rank_correlation(questions(table, arm, ratio), quality),
    )


def unexplained(decoder: str, kind: str, ratio: str, less: str = "") -> Measure:
    """Squared error over squared distance from the mean, by token types' counts; `less`: minus another decoder's."""

    def compute(table: "DataFrame") -> Interval:
        chosen = table[(table["arm"] == "adapter") & (table["ratio"] == ratio)] if "ratio" in table else table[:0]
        arrays = [a for a in chosen.get("arrays", []) if f"{kind}_count" in a and len(a[f"{kind}_count"]) > 1]
        if not arrays:
            raise NotRun(f"No run of adapter at {ratio} has {kind} token types.")
        first = arrays[0]
        count = first[f"{kind}_count"].astype(np.float64)
        errors = [np.mean([a[f"{kind}_{name}"] for a in arrays], axis=0) for name in (decoder, less) if name]
        error = errors[0] - errors[1] if less else errors[0]
        return bootstrap(
            np.stack([count * error, count * first[f"{kind}_spread"]], axis=1),
            lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum()), TYPE_RESAMPLES,
        )  # fmt: skip

    text = f"unexplained({decoder}{f' - {less}' if less else ''}, {kind} types{_at(ratio)})"
    return Measure(text, lambda table: (compute(table), f"Bootstrap over token types, {TYPE_RESAMPLES} resamples."))


def cosine(ratio: str) -> Measure:
    """Of the adapter's rows with the model's own, the mean over the token types that the fits saw, by their counts."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        chosen = table[(table["arm"] == "adapter") & (table["ratio"] == ratio)] if "ratio" in table else table[:0]
        arrays = [a for a in chosen.get("arrays", []) if "seen_cosine" in a and len(a["seen_count"]) > 1]
        if not arrays:
            raise NotRun(f"No run of adapter at {ratio} has cosines of token types.")
        count = arrays[0]["seen_count"].astype(np.float64)
        rows = np.stack([count * np.mean([a["seen_cosine"] for a in arrays], axis=0), count], axis=1)
        interval = bootstrap(rows, lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum()), TYPE_RESAMPLES)
        return interval, f"Bootstrap over token types, {TYPE_RESAMPLES} resamples; mean over {len(arrays)} adapter(s)."

    return Measure(f"cosine(adapter, seen types{_at(ratio)}), {TYPE_RESAMPLES} resamples", compute)


def _measure(text: str, compute: Callable[["DataFrame"], Interval]) -> Measure:
    return Measure(f"{text}, {retained.RESAMPLES} resamples", lambda table: (compute(table), HOW))


def _at(ratio: str) -> str:
    return f" at {ratio}" if ratio else ""


# ----------------------------------------------------------------------------------------------------------- claims
READS = Claim(
    "uncompressed_f1",
    "Uncompressed, the model answers with an F1 of 60 or more",
    OWN,
    "80",
    "F1",
    f1_of("raw"),
    above=60.0,
)
CONTROL = Claim(
    "question_only_f1", "Asked without the paragraph, the model answers with an F1 below 10", OWN, "0", "F1",
    f1_of("question_only"), below=10.0,
)  # fmt: skip
SAME = Claim(
    "embeddings_are_ids", "Reading the prompt as embeddings and reading it as token ids differ by less than 1 point of F1", OWN, "0", "F1 points, size",
    _measure("size_of_difference(raw - ids)", lambda table: _size(retained.difference(questions(table, "raw"), questions(table, "ids")))),
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
            f"f1_{ratio}", f"{at_ratio} the model answers through the rows of an adapter trained on reconstruction alone with an F1 of {GOOD:g} or more", ORIGINAL, "70 or more", "F1",
            f1_of("adapter", ratio), above=GOOD,
        ),
        Claim(
            f"retention_{ratio}", f"{at_ratio} the adapter keeps {RETAINED:.0%} or more of what the paragraph gives", OWN,
            "0.7 or more", "retention", retention("adapter", ratio), above=RETAINED,
        ),
        Claim(
            f"cosine_{ratio}", f"{at_ratio} the adapter's rows have a cosine of {COSINE:g} or more with the model's own", ORIGINAL,
            "above 0.9", "cosine, seen token types by their counts", cosine(ratio), above=COSINE,
        ),
        Claim(
            f"correlation_{ratio}", f"{at_ratio}, questions whose paragraphs are reconstructed better are answered better", ORIGINAL,
            "above 0", "Spearman", rank_correlation("adapter", ratio), above=0.0,
        ),
        Claim(
            f"answer_correlation_{ratio}", f"{at_ratio}, questions whose answer's own tokens are reconstructed better are answered better",
            OWN, "above 0", "Spearman", rank_correlation("adapter", ratio, "answer_error"), above=0.0,
        ),
        Claim(
            f"held_out_{ratio}", f"{at_ratio} the adapter reconstructs token types that it never saw better than the linear inverse",
            OWN, "below 0", "unexplained variance, difference", unexplained("adapter", "held_out", ratio, less="linear"), below=0.0,
        ),
        Claim(
            f"seen_{ratio}", f"{at_ratio} the adapter reconstructs token types that it trained on better than the linear inverse",
            OWN, "below 0", "unexplained variance, difference", unexplained("adapter", "seen", ratio, less="linear"), below=0.0,
        ),
    ]  # fmt: skip
    if "linear" in arms:
        ratio_claims.append(Claim(
            f"adapter_vs_linear_{ratio}", f"{at_ratio} the adapter answers better than the linear inverse of the same codes", OWN,
            "above 0", "F1 points", difference(("adapter", ratio), ("linear", ratio)), above=0.0,
        ))  # fmt: skip
    if "nearest" in arms:
        ratio_claims.append(Claim(
            f"nearest_{ratio}", f"{at_ratio} the nearest row of the receiver's table keeps 95 % or more, with nothing trained", OWN,
            "1", "retention", retention("nearest", ratio), above=0.95,
        ))  # fmt: skip
    if "nearest_int4" in arms:
        ratio_claims.append(Claim(
            f"nearest_int4_{ratio}", f"{at_ratio} the nearest row of the receiver's table, its codes and those sent in 4 bits a dimension, keeps 95 % or more, with nothing trained",
            OWN, "none", "retention", retention("nearest_int4", ratio), above=0.95,
        ))  # fmt: skip
    if {"fewer", "adapter_paragraph"} <= set(arms):
        ratio_claims.append(Claim(
            f"fewer_{ratio}", f"{at_ratio} of the paragraph alone the adapter answers better than the same bytes spent on the paragraph's rarest tokens", OWN,
            "above 0", "F1 points", difference(("adapter_paragraph", ratio), ("fewer", ratio)), above=0.0,
        ))  # fmt: skip
    for arm, what, source in (
        ("phase2", "through the language model", OWN), ("phase2_ppl", "on the prompt's perplexity besides", ORIGINAL),
    ):  # fmt: skip
        if arm in arms:
            ratio_claims.append(Claim(
                f"{arm}_{ratio}", f"{at_ratio} training {what} raises F1 above that of training on reconstruction alone", source, "above 0",
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
        answers = f"With the arm `{arm}` the model answers with an F1 of {GOOD:g} or more"
        return [Claim("f1", answers, ORIGINAL, "70 or more", "F1", f1_of(arm), above=GOOD)]
    if verb == "selfcheck":
        return [
            Claim(
                "selfcheck",
                "Every check of the harness holds",
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
            "An eighth of the dimensions keeps 90 % or more of the variance of the token embeddings",
            ORIGINAL,
            "0.9",
            "share",
            _kept(),
            above=0.9,
        )
    ]


def _failing() -> Measure:
    def compute(table: "DataFrame") -> tuple[Interval, str]:
        if table.empty or "failing" not in table:
            raise NotRun("The checks have not run.")
        failing = float(table["failing"].iloc[0])
        return Interval(failing, failing, failing, int(table["checks"].iloc[0])), "Counted."

    return Measure("failing checks", compute)


def _kept() -> Measure:
    def compute(table: "DataFrame") -> tuple[Interval, str]:
        if table.empty or "kept_8x" not in table:
            raise NotRun("No fit is finished.")
        kept = float(table["kept_8x"].iloc[0])
        return Interval(kept, kept, kept, int(table["types_seen"].iloc[0])), "Exact, of the token types counted."

    return Measure("kept_8x", compute)


# ---------------------------------------------------------------------------------------------- what a run's folder says
def columns(folder: Path, config: Any) -> dict[str, Any]:
    """What claims and tables read of one finished run."""
    metrics = read_json(folder / "results.json")["metrics"]
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
