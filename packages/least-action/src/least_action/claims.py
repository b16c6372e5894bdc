"""The study's claims, as data, and what they read of a finished run.

Each compares runs that differ in one thing, seed by seed. A time to grok that was not reached counts as the run's
length and makes a ratio of times a bound; a share of runs that reach it names the epochs that they had. The unit is a
training: one that stands under several names, or is measured in several ways, counts once. A sweep is judged by the claims that its runs can decide, and no others; one
run alone decides none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from least_action.config import MEASURING, TrainerConfig
from least_action.events import (
    GROKKED,
    MEMORISED,
    PLATEAU,
    Events,
    find_events,
    has_plateau,
    held_from_first_touch,
    read_history,
)
from least_action.plan import plan
from studycore.claims import Claim, Condition, Measure, NotRun
from studycore.configuration import config_hash, to_dict
from studycore.measures import all_done, geometric_mean, of_arms, paired_ratio, rows as rows_of, share
from studycore.statistics import Interval, median_interval, ratio_interval

if TYPE_CHECKING:
    from pandas import DataFrame

TRAINING = "training"
"""Column whose value is equal for runs that are one training: same seed and settings, whatever was measured and when."""
ORIGINAL, POWER = "the original study", "Power et al. 2022, arXiv:2201.02177"
NANDA, TVEIT, OWN = "Nanda et al. 2023, arXiv:2301.05217", "Tveit et al. 2025, arXiv:2504.16041", "this study"
DENSE = "dense runs with weight decay"
ADAMW = "AdamW runs without a recipe"
HALF = 0.5
"""What the interval of a share must lie above or below: 6 of 6 or 0 of 6 do it."""
LEAST_EVALUATIONS = 20
"""Evaluations after a window that begins at the first touch of 0.99, below which nothing is said about stability."""
STABLE = 0.99
"""Share of them that must hold 0.99 for a run to count as stable."""
ENTROPY_SHARE, MAX_USE = 0.5, 0.9
"""Gates are selective when their mean entropy is below this share of log heads, no head has more than this use, and the
heaviest heads of different inputs differ: gates that are the same for every input route nothing."""
KEPT, REMOVED = 0.95, 0.05
"""Accuracy of the key frequencies alone, and without them, that counts as kept and as removed: chance is below 0.01 at p = 113. Accuracy without
them, and the plateau, are not asked about where chance, 1 / p, is more than half of their bound."""
UNITS_OF_A_SHARE = 6
"""Trainings with which the exact interval of a share can lie above or below one half; also the pairs that a
ratio of times needs: where 15 in 100 seeds behave otherwise, three seeds show none of these in 61 of 100 trials."""
LEAST_UNITS = 3
"""Trainings below which another mean is not judged: two times on a grid of evaluations are often tied."""


def _selective_gates() -> Condition:
    def unmet(table: "DataFrame") -> str:
        routed = table[table["routing"] == "routed runs"] if "routing" in table else table[:0]
        if routed.empty:
            return "No routed run with a regulariser of its gates has finished."
        gates = routed.reindex(columns=["gate_entropy_share", "gate_max_use", "gate_paths"]).astype(float)
        if unknown := int(gates.isna().any(axis=1).sum()):
            return f"Needs the gates of every routed run; those of {unknown} of {len(routed)} were not measured when it reached {GROKKED:g} and at its end."
        entropy, use = float(gates["gate_entropy_share"].max()), float(gates["gate_max_use"].max())
        paths = int(gates["gate_paths"].min())
        if entropy < ENTROPY_SHARE and use < MAX_USE and paths > 1:
            return ""
        return (
            f"Needs selective gates in every routed run: entropy below {ENTROPY_SHARE:g} of log heads, no head with more than "
            f"{MAX_USE:g} of the use, and inputs on several paths; the largest are {entropy:.2f} and {use:.2f}, and the "
            f"fewest paths {paths}, so that nothing is routed."
        )

    return Condition(
        f"gates are selective(entropy {ENTROPY_SHARE:g}, use {MAX_USE:g}, several paths, every routed run, at {GROKKED:g} and at the end)",
        unmet,
    )


def _stability_is_measured() -> Condition:
    def unmet(table: "DataFrame") -> str:
        try:
            rows_of(table, "stable", DENSE, "kind")
        except NotRun:
            return f"No dense run went on for {LEAST_EVALUATIONS} evaluations after a window that begins where it first has {GROKKED:g}."
        return ""

    return Condition(f"{LEAST_EVALUATIONS} evaluations follow a window from the first touch of {GROKKED:g}", unmet)


def _stable_runs() -> Measure:
    """Share of the runs that stay from their first touch on, of those that went on long enough to tell; how many did not is
    said."""
    plain = share("stable", DENSE, of="kind", by=TRAINING).given(GROKKED=GROKKED, STABLE=STABLE, since="first touch")

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = plain.compute(table)
        own = table[table["kind"] == DENSE]
        untold = own[own["stable"].isna()]
        never = int(untold["crossed_99"].isna().sum()) if "crossed_99" in untold else len(untold)
        reasons = {f"never had {GROKKED:g}": never, "had it too late to tell": len(untold) - never}
        return interval, how + _left_out(len(own), reasons)

    return replace(plain, compute=compute)


def _left_out(runs: int, reasons: Mapping[str, int]) -> str:
    """ "" or the sentence on how many of the runs are left out, for each of the reasons."""
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return f" Left out of {runs} runs: {counted}." if counted else ""


def _share_of_known(metric: str, of: str = "") -> Measure:
    """Share of the dense trainings in which `metric` is true; with `of`, only among those in which `of` is true.

    A share has an exact interval. Student's interval of a mean of bounded values would have no width when the few runs that
    were made are alike, however many others are not. One of these runs without a value leaves the claim not run.
    """
    plain = share(metric, DENSE, of="kind", by=TRAINING)

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        own = table[table["kind"] == DENSE] if "kind" in table else table[:0]
        asked = own[own[of].astype(bool)] if of and of in own else own
        known = asked[metric].notna() if metric in asked else asked["run"].isna()
        if lacking := int((~known).sum()):
            raise NotRun(f"Needs {metric} of {len(asked)} runs of {DENSE}; {lacking} are done and have no value of it.")
        interval, how = plain.compute(table)
        left_out = (
            f" Left out: {len(own) - len(asked)} of {len(own)} runs, which are not {of}."
            if len(asked) < len(own)
            else ""
        )
        return interval, how + left_out

    return replace(plain, text=f"{plain.text}, each known{f', of {of}' if of else ''}", compute=compute)


def _time_ratio(treated: str, control: str, of: str, by: str = "seed", alike: str = "") -> Measure:
    """Time to 0.99, treated over control, in pairs."""
    measure = paired_ratio("time", treated, control, of=of, by=by, censored="censored", alike=alike, grid="eval_every")
    return measure.given(GROKKED=GROKKED).from_units(UNITS_OF_A_SHARE)


WITHOUT_OVER_WITH = _time_ratio(
    "runs without weight decay", "runs with it", "decay", "matched_but_for_decay", "that differ in nothing else"
)
ROUTED_OVER_DENSE = _time_ratio(
    "routed runs", "dense runs", "routing", "matched_but_for_routing", "that differ in nothing else"
)
SELECTIVE = _selective_gates()


def _from_memorising_to_grokking(column: str) -> Measure:
    """A metric at the evaluation at which a run grokked over the same at which it had memorised before.

    Runs that did not reach it, or did not memorise first, are counted and left out; one that did both and lacks a value, as
    one that was infinite, leaves it not run. Where a value is not positive there is no ratio: then it is the median, over
    runs, of one plus the difference over the larger magnitude, which is the ratio where a positive value falls and lies below
    1 whenever it falls; so that the signs of the changes decide.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        all_done(table, DENSE, "kind")
        own = rows_of(table, "grokked", DENSE, "kind")
        reached = own[own["grokked"].astype(bool)]
        ordered = reached[reached["memorises_first"].astype(bool)]
        wanted = [f"{column}_memorised", f"{column}_grokked"]
        values = ordered.reindex(columns=wanted).astype(float).groupby(ordered[TRAINING]).mean()
        reasons = {
            f"never held {GROKKED:g}": len(own) - len(reached),
            "did not memorise before": len(reached) - len(ordered),
        }
        left_out = _left_out(len(own), reasons)
        if lacking := int(values.isna().any(axis=1).sum()):
            raise NotRun(
                f"Needs {column} at both events of the {len(values)} trainings that memorise before they reach {GROKKED:g}; "
                f"{lacking} have no finite value, and what it would have shown is not known.{left_out}"
            )
        if len(values) < LEAST_UNITS:
            raise NotRun(
                f"Needs {LEAST_UNITS} or more runs that memorise before they reach {GROKKED:g}, with {column} at both; "
                f"there are {len(values)}.{left_out}"
            )
        pairs = [(float(after), float(before)) for before, after in values.to_numpy()]
        if all(min(pair) > 0 for pair in pairs):
            how = f"Geometric mean over runs of {DENSE}, Student's t on logarithms."
            return ratio_interval(pairs), how + left_out
        signless = sum(min(pair) <= 0 for pair in pairs)
        how = f"{signless} of {len(pairs)} runs have a value of 0 or less and no ratio: median of 1 + difference over the larger magnitude, interval of the sign test."
        return median_interval([_relative_change(*pair) for pair in pairs], -1.0, 3.0), how + left_out

    text = f"from_memorising_to_grokking({column}, kind = {DENSE!r}, by {TRAINING})"
    measure = Measure(text, compute, f"{TRAINING}s", f"{column}_grokked", of_arms("kind", DENSE))
    return measure.given(MEMORISED=MEMORISED, GROKKED=GROKKED, least=LEAST_UNITS)


def _relative_change(after: float, before: float) -> float:
    """1 + (after - before) over the larger magnitude: from -1 to 3, below 1 when it falls."""
    size = max(abs(after), abs(before))
    return 1.0 if size == 0 else 1 + (after - before) / size


def _event_ratio(id_: str, statement: str, source: str, column: str, unit: str, rises: bool = False) -> Claim:
    """A metric at the evaluation at which the run grokked over the same at which it memorised."""
    threshold: dict[str, Any] = {"above": 1.0} if rises else {"below": 1.0}
    return Claim(
        id_, statement, source, "rises" if rises else "falls", f"times, {unit} at grokking over memorisation",
        _from_memorising_to_grokking(column), **threshold,
    )  # fmt: skip


def _reaches(of: str, which: str) -> Measure:
    """Share of the trainings that reach 0.99."""
    measure = share("grokked", which, of=of, by=TRAINING).given(GROKKED=GROKKED)
    return replace(measure, metric="reached_99")


def _operation(name: str, noun: str) -> Claim:
    return Claim(
        f"generalises_{name}", f"More than half of the runs on {noun} reach 0.99 test accuracy", OWN, "9 of 10 runs", "share of runs",
        _reaches("operation", name), above=HALF,
        decided_by="sweep --config operations",
    )  # fmt: skip


CLAIMS = (
    Claim(
        "generalises", "More than half of the runs with weight decay reach 0.99 test accuracy", POWER, "every run", "share of runs",
        _reaches("kind", DENSE), above=HALF,
    ),
    Claim(
        "plateau",
        "More than half of the runs with weight decay have a plateau: from memorisation on, accuracy on held-out pairs whose "
        f"mirror image is new too stays below {PLATEAU:g} for a window of evaluations", POWER, "every run, near chance",
        "share of runs", _share_of_known("plateau").given(MEMORISED=MEMORISED, PLATEAU=PLATEAU), above=HALF,
    ),
    Claim(
        "stability", "More than half of the runs stay: after the first evaluation with 0.99, 99 % of those that follow have it "
        "too (of fewer than 100, every one)", OWN, "9 of 10 runs",
        "share of runs", _stable_runs(), above=HALF,
        when=_stability_is_measured(),
    ),
    Claim(
        "delay", "Test accuracy reaches 0.99 ten times later than training accuracy does", POWER,
        "10 times or more (AdamW)", "times, time to generalise over time to memorise",
        geometric_mean("time", ADAMW, of="published", censored="censored", by=TRAINING, capped="not_memorised", over="memorised_by", grid="eval_every")
        .given(MEMORISED=MEMORISED, GROKKED=GROKKED).from_units(LEAST_UNITS), above=10.0,
    ),
    Claim(
        "weight_decay", "Without weight decay 0.99 test accuracy takes longer", f"{ORIGINAL}; {POWER}", "critical",
        "times, time to 0.99 without over with", WITHOUT_OVER_WITH, above=1.0,
    ),
    Claim(
        "routing", "Routing slows generalisation against the matched transformer", f"{ORIGINAL} (confounded there)",
        "4 times slower", "times, time to 0.99 routed over dense", ROUTED_OVER_DENSE, above=1.0, when=SELECTIVE,
    ),
    Claim(
        "routing_fourfold", "Routing slows generalisation at least fourfold", f"{ORIGINAL}'s own figure",
        "4 times slower", "times, time to 0.99 routed over dense", ROUTED_OVER_DENSE, above=4.0, when=SELECTIVE,
    ),
    _event_ratio(
        "curvature", "The weight Hessian's trace is lower at grokking than at memorisation", ORIGINAL,
        "weight_hessian_trace", "trace",
    ),
    _event_ratio(
        "curvature_scale_free",
        "The weight Hessian's trace times the weights' squared norm, which rescaling the weights leaves unchanged, "
        "is lower at grokking than at memorisation",
        f"{OWN}: the norm falls too", "weight_hessian_scale_free", "trace times squared norm",
    ),
    _event_ratio(
        "curvature_per_loss",
        "The weight Hessian's trace per unit of training loss is lower at grokking than at memorisation",
        f"{OWN}: the trace falls with the loss alone", "weight_hessian_per_loss", "trace over loss",
    ),
    _event_ratio(
        "restricted_loss", "The loss of the key frequencies alone is lower at grokking than at memorisation", NANDA,
        "restricted_loss", "restricted loss",
    ),
    _event_ratio(
        "excluded_loss", "The training loss without the key frequencies is higher at grokking than at memorisation",
        NANDA, "excluded_loss", "excluded loss", rises=True,
    ),
    Claim(
        "keys_removed", f"In more than half of the runs that reach 0.99, accuracy on held-out pairs without the key frequencies is then below {REMOVED:g}",
        NANDA, "every run, chance", "share of runs",
        _share_of_known("keys_removed", of="grokked").given(GROKKED=GROKKED, REMOVED=REMOVED), above=HALF,
    ),
    Claim(
        "keys_kept", f"In more than half of the runs that reach 0.99, the key frequencies alone leave accuracy then above {KEPT:g}",
        NANDA, "every run, unchanged", "share of runs",
        _share_of_known("keys_kept", of="grokked").given(GROKKED=GROKKED, KEPT=KEPT), above=HALF,
    ),
    Claim(
        "muon", "Muon reaches 0.99 test accuracy in fewer epochs than AdamW", TVEIT, "0.67 times (to 0.95)",
        "times, time to 0.99 Muon over AdamW",
        _time_ratio("muon", "none", "recipe", "matched_but_for_recipe", "that differ in recipe and rate alone"), below=1.0,
        decided_by="sweep --config recipes",
    ),
    _operation("add", "addition"),
    _operation("subtract", "subtraction"),
    _operation("multiply", "multiplication"),
    _operation("divide", "division"),
)  # fmt: skip


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """The claims that the runs of a configuration can decide, by what differs among them. One run decides none."""
    if verb != "sweep":
        return []
    runs = [job.config for job in plan(config)]
    return [_of_runs(claim, runs) for claim in CLAIMS if _is_asked(claim.id, runs)]


SHARES = ("generalises", "stability", "plateau", "keys_removed", "keys_kept")
"""Claims on a share of the dense runs with weight decay."""


def _of_runs(claim: Claim, runs: Sequence[TrainerConfig]) -> Claim:
    """The claim with what it says of these runs alone: the epochs that they have, the length of a window, a shared split."""
    own = _runs_of(claim.id, runs)
    if claim.id.startswith("generalises"):
        statement = f"{claim.statement} within {own[0].epochs:,} epochs"
        claim = replace(claim, statement=statement, measure=claim.measure.given(epochs=own[0].epochs))
    if claim.id == "plateau":
        window, every = own[0].event_window, own[0].eval_every
        statement = claim.statement.replace("a window of evaluations", f"{window} evaluations, {every} epochs apart")
        claim = replace(claim, statement=statement, measure=claim.measure.given(event_window=window, eval_every=every))
    if all(run.data_seed is not None for run in own):
        note = f"All runs have one split of the pairs, that of data_seed {own[0].data_seed}: n counts initial weights, and of other splits the figure says nothing."
        claim = replace(claim, measure=claim.measure.noted(note))
    return claim


def _runs_of(claim: str, runs: Sequence[TrainerConfig]) -> list[TrainerConfig]:
    """The runs that a claim takes together: those of an operation, of Muon, or the dense ones with weight decay."""
    if claim.startswith("generalises_"):
        return [run for run in runs if run.operation == claim.removeprefix("generalises_")]
    return [run for run in runs if run.recipe == "muon"] if claim == "muon" else [*filter(_is_dense_with_decay, runs)]


def _trainings(runs: Sequence[TrainerConfig]) -> int:
    """How many different trainings these are."""
    return len({_identity(run) for run in runs})


def _have_one_budget(runs: Sequence[TrainerConfig]) -> bool:
    """Whether the runs have the same epochs, in which an event can happen at all."""
    longest = {run.epochs for run in runs}
    return len(longest) == 1 and all(run.epochs >= (run.event_window - 1) * run.eval_every for run in runs)


def _is_asked(claim: str, runs: Sequence[TrainerConfig]) -> bool:
    """Whether the runs that the claim takes together are there and differ in nothing but the seed."""
    if claim.startswith("generalises_"):
        own = _runs_of(claim, runs)
        several = len({run.operation for run in runs}) > 1 and _trainings(own) >= UNITS_OF_A_SHARE
        return several and _are_alike(own) and _have_one_budget(own)
    if claim == "muon":
        muon, adamw = ([run for run in runs if run.recipe == recipe] for recipe in ("muon", "none"))
        return _are_alike(muon) and _are_alike(adamw) and _are_paired(muon, adamw, "recipe", "lr")
    dense = [run for run in runs if _is_dense_with_decay(run)]
    if not _are_alike(dense):
        return False
    if claim in SHARES and _trainings(dense) < UNITS_OF_A_SHARE:
        return False
    if claim == "generalises" and not _have_one_budget(dense):
        return False
    if claim == "stability":
        return any(map(_may_show_stability, dense))
    if claim.startswith("curvature"):
        return all(run.compute_weight_curvature for run in dense)
    if 1 / dense[0].p > {"keys_removed": REMOVED, "plateau": PLATEAU}.get(claim, math.inf) / 2:
        return False
    if claim == "delay":
        return any(map(_is_published, runs))
    if claim == "weight_decay":
        without = [run for run in runs if run.weight_decay == 0]
        return _are_paired(dense, without, "weight_decay")
    if claim.startswith("routing"):
        routed = [run for run in runs if _is_routed(run)]
        return _are_alike(routed) and _are_paired(dense, routed, "model_type")
    if claim.startswith(("restricted", "excluded", "keys")):
        return dense[0].operation != "compose"
    return True


def _are_alike(runs: Sequence[TrainerConfig]) -> bool:
    """Whether there are runs, of one configuration but for the seed and for what is measured when."""
    left_out = {*MEASURING, "seed"}
    return len({config_hash({k: v for k, v in to_dict(run).items() if k not in left_out}) for run in runs}) == 1


def _are_paired(some: Sequence[TrainerConfig], others: Sequence[TrainerConfig], *but_for: str) -> bool:
    return bool({_identity(run, *but_for) for run in some} & {_identity(run, *but_for) for run in others})


def _may_show_stability(config: TrainerConfig) -> bool:
    """Whether a run that groks goes on for long enough, where its epochs suffice."""
    last = config.epochs if config.stop_after_grok is None else config.stop_after_grok
    return last // config.eval_every - (config.event_window - 1) >= LEAST_EVALUATIONS


DENSE_MODELS = ("transformer", "baseline")


def _is_dense_with_decay(config: TrainerConfig) -> bool:
    return config.weight_decay > 0 and config.model_type in DENSE_MODELS


def _is_published(config: TrainerConfig) -> bool:
    return _is_dense_with_decay(config) and config.recipe == "none"


def _is_routed(config: TrainerConfig) -> bool:
    """Routed, with a regulariser that makes gates selective."""
    return config.model_type == "routed_transformer" and bool(config.routing_regularizer) and config.lambda_routing > 0


def planned(name: str, config: TrainerConfig) -> dict[str, Any]:
    """The columns that a configuration gives, of a run that has not been made as well."""
    decay = "runs with it" if config.weight_decay > 0 else "runs without weight decay"
    values = {
        "decay": decay if config.model_type in DENSE_MODELS else None,
        "kind": DENSE if _is_dense_with_decay(config) else None,
        "published": ADAMW if _is_published(config) else None,
        "recipe": config.recipe,
        "operation": config.operation,
        "p": config.p,
        "epochs": config.epochs,
        "train_frac": config.train_frac,
        "eval_every": config.eval_every,
        "weight_decay": config.weight_decay,
        "routing": "routed runs"
        if _is_routed(config)
        else "dense runs"
        if config.model_type == "transformer"
        else None,
        TRAINING: _identity(config),
        "matched_but_for_decay": _identity(config, "weight_decay"),
        "matched_but_for_routing": _identity(config, "model_type"),
        "matched_but_for_recipe": _identity(config, "recipe", "lr"),
    }
    return {column: value for column, value in values.items() if value is not None}


def columns(folder: Path, config: TrainerConfig) -> dict[str, Any]:
    """What claims and tables read of one finished run. UserError when it holds no evaluation, or damaged ones."""
    rows = read_history(folder, config)
    events = find_events(rows, config.p, config.event_window)
    grokked = events.grokked_99 is not None
    time = max(1, events.last_epoch if events.grokked_99 is None else events.grokked_99)
    last, memorised = rows[-1], events.memorised is not None
    values: dict[str, Any] = {
        **planned(folder.name, config),
        **events.as_dict(),
        "time": time,
        "grokked": grokked,
        "reached_99": grokked,  # as a reader of claims sees it: a run groks where it has a plateau too
        "censored": not grokked,
        "has_memorised": events.memorised is not None,
        "memorises_first": grokked and events.memorised is not None and events.delay is not None and events.delay > 0,
        "not_memorised": not memorised,
        "has_plateau": has_plateau(events.as_dict()),
        **{name: last[name] for name in ("train_acc", "test_acc", "train_loss", "test_loss")},
    }
    # A run that never memorised would have done so later than at its end: then the ratio is an upper bound.
    values["memorised_by"] = max(1, events.last_epoch if events.memorised is None else events.memorised)
    held = held_from_first_touch(rows)
    if held:
        values["held_from_touch"] = sum(held) / len(held)
    if len(held) - (config.event_window - 1) >= LEAST_EVALUATIONS:
        values["stable"] = values["held_from_touch"] >= STABLE
    values |= _gates(rows, events, config) | _at_events(rows, events)
    if memorised or grokked:  # of one that did neither, a longer run might have shown a plateau
        values["plateau"] = (
            False if not memorised else None if events.highest_new_accuracy is None else values["has_plateau"]
        )
    for name, accuracy, passes in (
        ("keys_removed", values.get("excluded_acc_grokked"), lambda x: x < REMOVED),
        ("keys_kept", values.get("restricted_acc_grokked"), lambda x: x > KEPT),
    ):
        values[name] = None if accuracy is None else passes(accuracy)
    return {name: value for name, value in values.items() if value is not None}


def _gates(rows: Sequence[Mapping[str, Any]], events: Events, config: TrainerConfig) -> dict[str, float]:
    """Entropy over log heads, the largest use of a head, and the number of paths: the least selective of what they are when
    the run reaches 0.99 and at its end, of a run that does not reach it the median after its start. Empty where they were not
    measured."""
    heads = config.n_heads if config.model_type == "routed" else config.routing_heads
    if heads < 2 or "routing_paths" not in rows[-1]:
        return {}
    grokked = events.grokked_99
    of = (
        [row for row in rows[1:] or rows if "routing_paths" in row]
        if grokked is None
        else [row for row in rows if row["epoch"] == grokked or row is rows[-1]]
    )
    if not all("routing_paths" in row for row in of):
        return {}
    entropy, use, paths = (
        (median if grokked is None else least_selective)(row[f"routing_{name}"] for row in of)
        for name, least_selective in (("entropy", max), ("max_use", max), ("paths", min))
    )
    return {"gate_entropy_share": entropy / math.log(heads), "gate_max_use": use, "gate_paths": paths}


AT_EVENTS = (
    "weight_hessian_trace", "weight_hessian_scale_free", "weight_hessian_per_loss", "restricted_loss", "excluded_loss",
    "restricted_acc", "excluded_acc",
)  # fmt: skip
"""Columns of the history that claims read at memorisation or grokking."""
ROUTING = ("routing_regularizer", "lambda_routing", "routing_heads", "decay_gates")
"""Fields that leave a dense run's path alone, and in which a routed run differs from the dense one it is matched to."""


def _identity(config: TrainerConfig, *but_for: str) -> str:
    """A name for all runs that differ in the fields `but_for` alone."""
    routed = config.model_type not in DENSE_MODELS and "model_type" not in but_for
    left_out = {*MEASURING, *([] if routed else ROUTING), *but_for}
    return config_hash({name: value for name, value in to_dict(config).items() if name not in left_out})


def _at_events(rows: Sequence[Mapping[str, Any]], events: Events) -> dict[str, float | None]:
    """Those columns at the evaluations at which the run memorised and grokked, as far as they were measured there."""
    epoch_of = {"memorised": events.memorised, "grokked": events.grokked_99}
    return {
        f"{column}_{event}": row.get(column)
        for event, epoch in epoch_of.items()
        for row in rows
        if row["epoch"] == epoch
        for column in AT_EVENTS
    }
