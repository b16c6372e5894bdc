"""The study's claims, as data, and what they read of a finished run. Changes are in percent.

Perplexity: paired bootstrap over validation documents, and the seeds' own variance. Conditioning is one number a run:
Student's t over seeds on its logarithm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrofit.config import TUNING, MeasureConfig, RunConfig
from retrofit.legacy.names import with_todays_names
from retrofit.metrics.documents import Floats, read_documents
from retrofit.metrics.matrix_rows import MatrixRow, read_csv
from retrofit.metrics.summaries import gaussian_kappa, transport_move, update_means
from retrofit.metrics.windows import RESAMPLES, log_differences, read_windows
from studycore.claims import Claim, Condition, Measure, NotRun
from studycore.measures import all_done, enough, geometric_mean, mean, of_arms, paired_ratio, pairs, rows
from studycore.metrics_log import read_rows
from studycore.report import figure_of
from studycore.statistics import Interval, joined_interval, mean_interval, ratio_interval, resampled_ratios

if TYPE_CHECKING:
    from pandas import DataFrame, Series

PERCENT = "% change"
ORIGINAL_UPDATES = 1000
"""Of the original study, by which its Expected Results are judged."""
HEADLINE_TOKENS = 65536
"""Fewest tokens of which the conditioning of activations is judged: on 4,096 it is a quarter too high, and noisier."""
FRONT_KAPPA, FRONT_PERPLEXITY = -10.0, 0.1
"""When a penalty helps: at some weight the median kappa of the up projections falls by a tenth while perplexity stays
within 0.1 % of continued training's (the width that the null arm is given too)."""
FRONT_WEIGHTS = 3
"""Fewest weights that make a front."""
LONG = "compare --config long"
"""What makes as many updates as the original study's."""
ORIGINAL, OWN = "the original study's Expected Results", "this study"


# ---------------------------------------------------------------------------------------------- this study's measures
def conditioning_from_start(metric: str, arm: str) -> Measure:
    """Percent from step 0 to the end, of the seeds in which both are positive: a ratio of float32 eigenvalues may not be."""
    change = geometric_mean(metric, arm, by="seed", over=f"initial_{metric}", percent=True)
    return replace(change, text=f"conditioning_from_start({metric}, {arm!r}), percent")


def perplexity_from_start(arm: str) -> Measure:
    """Percent from step 0 to the end: see perplexity_change."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        all_done(table, arm)
        runs = _runs_of(table, arm)
        enough(len(runs), f"seeds of {arm}")
        return _perplexity_change(runs["documents"], runs["initial_documents"])

    text = f"perplexity_from_start({arm!r}), percent, {RESAMPLES} resamples"
    return Measure(text, compute, "seeds", "val_loss", of_arms("arm", arm))


def perplexity_beside(treated: str, control: str) -> Measure:
    """Percent by which the treated arm ends beside the control, seed by seed: see perplexity_change."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        one, other = _both(table, treated, control, _runs_of(table, treated), _runs_of(table, control))
        return _perplexity_change(one["documents"], other["documents"])

    text = f"perplexity_beside({treated!r}, {control!r}), percent, {RESAMPLES} resamples"
    return Measure(text, compute, "seeds", "val_loss", of_arms("arm", treated, control))


def ff_gram_beside(treated: str, control: str) -> Measure:
    """Percent by which ff_gram (geometric mean over layers) ends beside the control's, on the same tokens.

    The bootstrap over windows of tokens, each with its values in all runs, joined with the variance between seeds as
    perplexity_change does.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        sides = (rows(table, "windows", arm).set_index("seed") for arm in (treated, control))
        one, other = _both(table, treated, control, *sides)
        both = list(zip(one["windows"], other["windows"], strict=True))
        each, drawn = log_differences(both)
        windows = both[0][0].shape[1]
        change = joined_interval(float(np.mean(each)), drawn, windows, each).logs_as_percent()
        tokens = int(one["ff_gram_tokens"].min())
        return change, f"Bootstrap over {windows} windows of {tokens:,} tokens, plus the variance between seeds."

    text = f"ff_gram_beside({treated!r}, {control!r}), percent, {RESAMPLES} resamples of windows"
    return Measure(text, compute, "seeds", "ff_gram", of_arms("arm", treated, control))


def _both(
    table: "DataFrame", treated: str, control: str, one: "DataFrame", other: "DataFrame"
) -> tuple["DataFrame", "DataFrame"]:
    """The runs of two arms, by seed, of the seeds that both have. NotRun where one failed: the rest would decide alone."""
    for arm in (treated, control):
        all_done(table, arm)
    seeds = sorted(set(one.index) & set(other.index))
    enough(len(seeds), f"seeds of both {treated} and {control}")
    return one.loc[seeds], other.loc[seeds]


@dataclass(frozen=True)
class FrontPoint:
    """A weight of the penalty: percent of change beside continued training, kappa of the up projections and perplexity."""

    weight: float
    kappa: Interval
    perplexity: Interval


def front_points(table: "DataFrame", penalty: str, confidence: float = 0.95) -> list[FrontPoint]:
    """Of every weight that has two seeds or more beside the control's. Empty where there are none."""
    if table.empty or not {"weight", "up_kappa_median"} <= set(table.columns):
        return []
    control, points = _runs_of(table, "standard"), []
    for weight, runs in table[table["arm"] == penalty].groupby("weight"):
        treated = runs.set_index("seed")
        seeds = sorted(set(treated.index) & set(control.index))
        if len(seeds) < 2:
            continue
        one, other = treated.loc[seeds], control.loc[seeds]
        logs = np.log(np.asarray(one["up_kappa_median"], float) / np.asarray(other["up_kappa_median"], float))
        kappa = mean_interval(list(logs), confidence).logs_as_percent()
        paired = list(zip(one["documents"], other["documents"], strict=True))
        points.append(FrontPoint(float(weight), kappa, perplexity_change(paired, confidence=confidence)))
    return points


def front(penalty: str) -> Measure:
    """Percent by which kappa falls at most, among the weights at which perplexity stays within FRONT_PERPLEXITY.

    The estimate is over the weights whose estimate stays within; the upper end over those whose whole interval does, the
    lower end over those whose interval reaches within. No penalty at all, which changes nothing, is always among them.
    Intervals of a weight have the confidence 1 - 0.05 / weights (Bonferroni), so that the best of many is no luck.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        for arm in ("standard", penalty):
            all_done(table, arm)
        weights = len(front_points(table, penalty))
        if weights < FRONT_WEIGHTS:
            raise NotRun(
                f"Needs {FRONT_WEIGHTS} or more weights of {penalty} with 2 or more seeds each beside standard; there are "
                f"{weights}. `retrofit compare --config weights` runs them."
            )
        points = front_points(table, penalty, 1 - 0.05 / weights)

        def lowest(end: str) -> float:
            inside = [p for p in points if getattr(p.perplexity, end) <= FRONT_PERPLEXITY]
            return min([0.0, *(getattr(p.kappa, end) for p in inside)])

        best = min(points, key=lambda p: (p.perplexity.estimate > FRONT_PERPLEXITY, p.kappa.estimate))
        within = best.perplexity.estimate <= FRONT_PERPLEXITY
        best_at = f"at weight {best.weight:g}" if within else "at no weight"
        how = f"Over {weights} weights, {best_at}; Student's t and paired bootstrap at {100 - 5 / weights:.3g} % each."
        return Interval(lowest("estimate"), lowest("low"), lowest("high"), len(_runs_of(table, "standard"))), how

    return Measure(
        f"front({penalty!r}: up_kappa_median where perplexity is within {FRONT_PERPLEXITY:g} % of standard), percent, "
        f"{FRONT_WEIGHTS} or more weights",
        compute, "seeds", "up_kappa_median", of_arms("arm", "standard", penalty),
    )  # fmt: skip


def budget_moves_kappa(penalty: str) -> Condition:
    """That kappa falls by FRONT_KAPPA at some weight, whatever perplexity does: else the updates were too few to tell.

    An update of Adam moves a weight by about the learning rate however large the penalty, so that a short run can only
    refute.
    """

    def unmet(table: "DataFrame") -> str:
        points = front_points(table, penalty)
        if len(points) < FRONT_WEIGHTS or min(p.kappa.estimate for p in points) <= FRONT_KAPPA:
            return ""
        most = min(points, key=lambda p: p.kappa.estimate)
        updates = int(table.loc[table["arm"] == penalty, "updates"].min())
        return (
            f"In {updates} updates kappa changes by {most.kappa.estimate:+.3g} % at most (at weight {most.weight:g}), and "
            f"{FRONT_KAPPA:g} % is asked for: make more updates, or give larger weights."
        )

    return Condition(f"kappa changes by {FRONT_KAPPA:g} % at some weight of {penalty}", unmet)


def after_the_originals_updates(measure: Measure, *arms: str) -> Condition:
    """That all runs of the arms made as many updates as the original study's; else the sentence tells what was found."""

    return _of_enough("updates", ORIGINAL_UPDATES, ("at {:,} updates", "after {:,} updates"), measure, arms)


def on_enough_tokens(measure: Measure, *arms: str) -> Condition:
    """That ff_gram was measured on HEADLINE_TOKENS or more; else the sentence tells what was found."""

    return _of_enough("ff_gram_tokens", HEADLINE_TOKENS, ("on {:,} tokens", "on {:,}"), measure, arms)


def _of_enough(column: str, least: int, words: tuple[str, str], measure: Measure, arms: Sequence[str]) -> Condition:
    def unmet(table: "DataFrame") -> str:
        chosen = table[table["arm"].isin(arms)].dropna(subset=[column]) if column in table.columns else table[:0]
        if chosen.empty or (there := int(chosen[column].min())) >= least:
            return ""
        change, _ = measure.compute(table)
        asked, seen = words[0].format(least), words[1].format(there)
        return f"Not run {asked}; {seen}: {figure_of(change)} %."

    return Condition(f"{column} of {', '.join(arms)} are {least} or more", unmet)


def size_of_difference(treated: str, control: str) -> Measure:
    """Percent by which perplexity differs, whatever the sign: mean over seeds, Student's t."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        both = pairs(table, "val_loss", treated, control)
        sizes = 100 * np.abs(np.expm1(both["treated"] - both["control"]))
        return mean_interval(list(sizes)), "Mean over seeds, Student's t."

    text = f"size_of_difference(perplexity, {treated!r} - {control!r}), percent"
    return Measure(text, compute, "seeds", "val_loss", of_arms("arm", treated, control))


def over_gaussian() -> Measure:
    """kappa of the up projections over a Gaussian matrix's: geometric mean over layers, Student's t on logarithms."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        ratios = [(float(ratio), 1.0) for layers in table["over_gaussian"] for ratio in layers]
        if len(ratios) < 2:
            raise NotRun(f"Needs 2 or more up projections of full rank that are not square; there are {len(ratios)}.")
        others = int(table["up_not_compared"].sum())
        left_out = f" {others} up projections of lower rank, or square, are left out." if others else ""
        return ratio_interval(ratios), f"Geometric mean over layers, Student's t.{left_out}"

    return Measure("over_gaussian(kappa of up projections), by layer", compute, "layers")


def unpublished(why: str) -> Measure:
    """Of what cannot be measured here."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        raise NotRun(why)

    return Measure("unpublished()", compute)


def perplexity_change(
    paired: Sequence[tuple[Floats, Floats]], resamples: int = RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Percent by which perplexity differs, treated against control, over (treated, control) pairs, one per seed.

    Paired bootstrap over documents, each with its values in all pairs, joined with the variance between seeds
    (studycore.statistics.joined_interval).
    """
    tokens_D = paired[0][0][:, 2]
    for treated, control in paired:
        assert np.array_equal(treated[:, [0, 2]], control[:, [0, 2]]), "evaluations on other documents can't be paired"
        assert np.array_equal(treated[:, 2], tokens_D)
    difference_SD = np.stack([treated[:, 1] - control[:, 1] for treated, control in paired])
    documents = difference_SD.shape[1]
    mean_D = difference_SD.mean(0)
    estimate = mean_D.sum() / tokens_D.sum()
    drawn = resampled_ratios(mean_D, tokens_D, resamples)
    of_seeds = list(difference_SD.sum(1) / tokens_D.sum())
    return joined_interval(float(estimate), drawn, documents, of_seeds, confidence).logs_as_percent()


def _runs_of(table: "DataFrame", arm: str) -> "DataFrame":
    """An arm's runs by seed."""
    return table[table["arm"] == arm].set_index("seed")


def _perplexity_change(treated: "Series[Any]", control: "Series[Any]") -> tuple[Interval, str]:
    paired = list(zip(treated, control, strict=True))
    over = f"{len(paired[0][0])} validation documents, plus the variance between seeds"
    return perplexity_change(paired), f"Paired bootstrap over {over}."


# ----------------------------------------------------------------------------------------------------------- claims
def _expected(method: str, words: str, quantity: str, percent: float, figures: str) -> Claim:
    """That the method changes the quantity from step 0 by this many percent or more."""
    what = "ff_gram_original" if quantity == "conditioning" else "validation perplexity"
    measure = conditioning_from_start("ff_gram_original", method)
    if quantity == "perplexity":
        measure = perplexity_from_start(method)
    return Claim(
        f"{method}_{quantity}", f"{words} lowers {what} by {-percent:g} % or more from step 0", ORIGINAL,
        f"{percent:g} % ({figures})", PERCENT,
        measure, below=percent, when=after_the_originals_updates(measure, method), decided_by=LONG,
    )  # fmt: skip


def _lower_perplexity(treated: str, words: str, source: str, predicted: str, control: str = "standard") -> Claim:
    """That the treated arm ends at a lower perplexity than the control."""
    measure = perplexity_beside(treated, control)
    when = after_the_originals_updates(measure, treated, control) if source == ORIGINAL else None
    return Claim(
        f"{treated}_vs_{control}",
        words,
        source,
        predicted,
        PERCENT,
        measure,
        below=0.0,
        when=when,
        decided_by=LONG if when else "",
    )


def _lower(name: str, metric: str, treated: str, control: str, words: str, source: str, predicted: str) -> Claim:
    """That the treated arm ends at a lower value of a metric than the control."""
    measure = paired_ratio(metric, treated, control, percent=True)
    when = after_the_originals_updates(measure, treated, control) if source == ORIGINAL else None
    return Claim(
        name, words, source, predicted, PERCENT, measure, below=0.0, when=when, decided_by=LONG if when else ""
    )  # fmt: skip


def _lower_ff_gram(treated: str, words: str) -> Claim:
    """That the treated arm ends at a lower geometric mean over layers than continued training, on enough tokens."""
    measure = ff_gram_beside(treated, "standard")
    return Claim(
        f"{treated}_ff_gram", f"{words} ends at a lower ff_gram (geometric mean over layers) than continued training", OWN,
        "lower", PERCENT, measure, below=0.0, when=on_enough_tokens(measure, treated, "standard"),
    )  # fmt: skip


def _helps(penalty: str, words: str) -> Claim:
    """That some weight of the penalty improves the weights' conditioning at no cost."""
    return Claim(
        f"{penalty}_front",
        f"{words} helps: at some weight the median kappa of the up projections falls by {-FRONT_KAPPA:g} % or more while "
        f"perplexity stays within {FRONT_PERPLEXITY:g} % of continued training's",
        OWN, f"{FRONT_KAPPA:g} %", PERCENT, front(penalty), below=FRONT_KAPPA, when=budget_moves_kappa(penalty),
        decided_by="compare --config weights",
    )  # fmt: skip


LOWER_PERPLEXITY = "ends at a lower perplexity than continued training, at the same tokens, batches and start"
LOWER_KAPPA = "ends at a lower median weight kappa of the up projections than continued training"
FRONTS = (_helps("gram", "The Gram penalty"), _helps("gram_scale_free", "The scale-free penalty"))
CLAIMS = (
    *FRONTS,
    _lower_ff_gram("gram", "The Gram penalty"),
    _lower_ff_gram("geometry", "Full geometry"),
    _lower_ff_gram("geometry_ffn", "Geometry without embeddings and down projections"),
    _expected("standard", "Continued training", "conditioning", -3, "4,738 to 4,600"),
    _expected("gram", "The Gram penalty", "conditioning", -32, "4,738 to 3,200"),
    _expected("geometry", "Full geometry", "conditioning", -47, "4,738 to 2,500"),
    _expected("standard", "Continued training", "perplexity", -2, "10.9 to 10.7"),
    _expected("gram", "The Gram penalty", "perplexity", -10, "10.9 to 9.8"),
    _expected("geometry", "Full geometry", "perplexity", -16, "10.9 to 9.2"),
    Claim(
        "author_model", "The author's own model, trained with geometry from the start, has an FF Gram condition number of 189 and a perplexity of 6.20", ORIGINAL,
        "-96 %", PERCENT,
        unpublished("The author's model has not been published; 189 is of one layer and one batch."), below=-96.0,
        decided_by=None,
    ),
    _lower_perplexity("gram", f"The Gram penalty {LOWER_PERPLEXITY}", ORIGINAL, "-8 % (9.8 against 10.7)"),
    _lower_perplexity("geometry", f"Full geometry {LOWER_PERPLEXITY}", ORIGINAL, "-14 % (9.2 against 10.7)"),
    _lower_perplexity("gram_scale_free", f"The scale-free penalty {LOWER_PERPLEXITY}", OWN, "lower"),
    _lower_perplexity(
        "geometry_ffn", f"Geometry without embeddings and down projections {LOWER_PERPLEXITY}", OWN, "lower"
    ),
    _lower_perplexity("glt_ffn", f"Normalising the up projections {LOWER_PERPLEXITY}", OWN, "lower"),
    _lower_perplexity("glt_fold", f"The function-preserving transport {LOWER_PERPLEXITY}", OWN, "lower"),
    _lower_perplexity(
        "geometry", "Full geometry ends at a lower perplexity than its weight norms alone bring", OWN, "lower",
        control="norm_matched",
    ),
    _lower(
        "geometry_vs_standard_conditioning", "ff_gram_original", "geometry", "standard",
        "Full geometry ends at a lower ff_gram_original than continued training", ORIGINAL, "-46 % (2,500 against 4,600)",
    ),
    _lower(
        "gram_vs_norm_matched_conditioning", "ff_gram_original", "gram", "norm_matched",
        "The Gram penalty ends at a lower ff_gram_original than shrinking alone (geometry's weight norms)", OWN, "lower",
    ),
    _lower("gram_kappa", "up_kappa_median", "gram", "standard", f"The Gram penalty {LOWER_KAPPA}", OWN, "lower"),
    _lower(
        "gram_scale_free_kappa", "up_kappa_median", "gram_scale_free", "standard",
        f"The scale-free penalty {LOWER_KAPPA}", OWN, "lower",
    ),
    _lower(
        "glt_fold_kappa", "up_kappa_median", "glt_fold", "standard",
        f"The function-preserving transport {LOWER_KAPPA}", OWN, "lower",
    ),
    Claim(
        "glt_fold_function", "The function-preserving transport moves perplexity by less than 0.01 %",
        f"{OWN}: it is exact but for rounding", "0", "%, size of the largest move at a transport",
        mean("largest_transport_move", "glt_fold"), below=0.01,
    ),
    Claim(
        "glt_perm_null",
        "Permuting hidden units with their optimizer state ends within 0.1 % of continued training's perplexity",
        f"{OWN}: the trajectory is the same but for rounding", "0", "%, size of the difference",
        size_of_difference("glt_perm", "standard"), below=0.1,
    ),
)  # fmt: skip
WORSE_THAN_RANDOM = Claim(
    "up_kappa_over_gaussian",
    "Up projections are more than a tenth worse conditioned than Gaussian matrices of their shape",
    OWN, "worse", "x, kappa over a Gaussian matrix's", over_gaussian(), above=1.1,
    decided_by=None,
)  # fmt: skip


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """A comparison is judged by all claims, one of several weights by their fronts alone; a run by those on its method alone, which one seed leaves not run."""
    if verb == "measure":
        return (WORSE_THAN_RANDOM,)
    if verb == "compare":
        return FRONTS if config.weights else CLAIMS
    own = [f"{config.method}_{what}" for what in ("conditioning", "perplexity", "function")]
    return [claim for claim in CLAIMS if claim.id in (*own, "author_model")]


# ---------------------------------------------------------------------------------------------- what a run's folder says
def columns(folder: Path, config: RunConfig | MeasureConfig) -> dict[str, Any]:
    """What claims and tables read of one finished run."""
    if isinstance(config, MeasureConfig):
        ups = [row for row in read_csv(folder / "weights.csv", MatrixRow) if row.role == "up"]
        ratios = ratios_to_gaussian(ups)
        return {"over_gaussian": ratios, "up_not_compared": len(ups) - len(ratios)}
    history = rows_of(folder)
    evaluations = evaluations_of(history)
    first, last = evaluations[0], evaluations[-1]
    kept = ("val_ppl", "up_kappa_median", "ff_gram", "ff_gram_tokens", "ff_gram_original", "val_loss")
    windows = read_windows(folder, last["step"])
    moves = [abs(transport_move(row)) for row in history if row["kind"] == "transport"]
    return {
        "arm": TUNING if config.validate_on == "tuning" else config.method,
        "updates": last["step"],
        "weight": config.gram_weight,
        **{name: last[name] for name in kept if name in last},
        **{f"initial_{name}": first[name] for name in kept if name in first},
        **update_means(history),
        **({"largest_transport_move": max(moves)} if moves else {}),
        "initial_documents": read_documents(folder, first["step"]),
        "documents": read_documents(folder, last["step"]),
        **({"windows": windows} if windows is not None else {}),
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run of any version, with today's names."""
    return [with_todays_names(row) for row in read_rows(folder / "metrics.jsonl")]


def evaluations_of(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations among a run's rows."""
    return [row for row in history if row["kind"] == "evaluation"]


def ratios_to_gaussian(ups: Sequence[MatrixRow]) -> list[float]:
    """kappa over a Gaussian matrix's of every matrix of full rank that is not square."""
    ratios = []
    for row in ups:
        outputs, inputs = map(int, row.shape.split(" x "))
        ratios.append(row.kappa / gaussian_kappa(outputs, inputs))
    return [ratio for ratio in ratios if math.isfinite(ratio) and ratio > 0]
