"""Claims as data: a statement, a threshold that stands in the run's folder before the run, and how it is measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from studycore.statistics import Interval

if TYPE_CHECKING:
    from pandas import DataFrame

Verdict = Literal["supported", "refuted", "inconclusive", "not run"]


class NotRun(Exception):
    """What a claim needs is missing; the sentence says what."""


@dataclass(frozen=True)
class Measure:
    """What is measured on a table of runs; studycore.measures makes them."""

    text: str
    """Stands in claims.json: another text is another measure."""
    compute: Callable[["DataFrame"], tuple[Interval, str]]
    """(the figure, how it was made), from one row per finished run. NotRun where an input is missing."""
    units: str = ""
    """What n counts, in the plural; "" where `compute` alone knows it."""
    metric: str = ""
    """The column whose values a report shows, run by run, beside the figure; "" for none."""
    read: Callable[["DataFrame"], "DataFrame"] = lambda table: table
    """Those of the table's rows that the figure is made from."""

    def given(self, **constants: Any) -> "Measure":
        """The same measure, whose text also gives the study's constants by which its columns are made.

        Claims that were registered under other values are then measured otherwise, and not run. Values are what prints
        the same in every process: numbers, strings, tuples of them; of a rule, its terms.
        """
        values = ", ".join(f"{name} {value!r}" for name, value in constants.items())
        return replace(self, text=f"{self.text}, given {values}")

    def noted(self, note: "str | Callable[[DataFrame], str]") -> "Measure":
        """The same figure, whose reason also says the note, or what it makes of the table. The verdict does not hang on it."""

        def compute(table: "DataFrame") -> tuple[Interval, str]:
            interval, how = self.compute(table)
            return interval, f"{how} {note if isinstance(note, str) else note(table)}"

        return replace(self, compute=compute)

    def from_units(self, least: int) -> "Measure":
        """The same measure, which is not run with fewer independent units: two of a few values on a grid are often tied."""

        def compute(table: "DataFrame") -> tuple[Interval, str]:
            interval, how = self.compute(table)
            if interval.n < least:
                raise NotRun(f"Needs {least} or more units; there are {interval.n}. {how}")
            return interval, how

        return replace(self, text=f"{self.text}, from {least} units", compute=compute)


@dataclass(frozen=True)
class Condition:
    """What must hold of the runs for a claim to be tested at all."""

    text: str
    unmet: Callable[["DataFrame"], str]
    """The sentence on what does not hold; "" when all does."""


@dataclass(frozen=True)
class Claim:
    """The quantity lies above (or below) a threshold."""

    id: str
    statement: str
    source: str
    """Who says so."""
    predicted: str
    """The figure that the source gives, as text."""
    unit: str
    measure: Measure
    above: float | None = None
    below: float | None = None
    when: Condition | None = None
    of_every_unit: bool = False
    """Of shares: a single finished unit that does not pass refutes the claim, and one that has not finished leaves it open."""
    decided_by: str | None = ""
    """Arguments of the study's command whose runs decide it; "": those of Study.decided_by; None: nothing does."""

    def __post_init__(self) -> None:
        assert (self.above is None) != (self.below is None), f"{self.id}: give above or below"


@dataclass(frozen=True)
class Wording:
    """What a headline claim says in the answer of a report, by its verdict.

    `{x}` stands for the measured figure, `{size}` for it without its sign, `{at}` for "at least " or "at most " where it is
    only a bound, `{k}` and `{n}` for what a share is a share of, and `{which}` for the things that the claims of this
    verdict are about.
    """

    supported: str
    refuted: str
    inconclusive: str
    not_run: str


def said(claims: Sequence[Mapping[str, Any]], id_: str, wording: Wording) -> str:
    """The words for the verdict on one of the judged claims, marked where it was not registered before the run; "" where the
    runs are not asked for it at all."""
    claim = next((claim for claim in claims if claim["id"] == id_), None)
    if claim is None:
        return ""
    bound = claim["bound"] if claim["bound"] in ("at least", "at most") else ""
    text: str = getattr(wording, claim["verdict"].replace(" ", "_"))
    measured = claim["measured"]
    size, k = (None, None) if measured is None else (abs(measured), round(measured * claim["n"]))
    words = text.format(x=measured, size=size, k=k, n=claim["n"], at=f"{bound} " if bound else "")
    return f"{words}{_mark(claim)}" if words else ""


def _mark(claim: Mapping[str, Any]) -> str:
    return "" if claim["registered"] or claim["verdict"] == "not run" else " (exploratory)"


def said_of(claims: Sequence[Mapping[str, Any]], names: Mapping[str, str], wording: Wording) -> list[str]:
    """One claim of several things, each a claim of its own (`names`: what each is about, by id): a clause a verdict."""
    of = {claim["id"]: claim for claim in claims if claim["id"] in names}
    clauses = []
    for verdict in get_args(Verdict):
        if which := [f"{names[id_]}{_mark(of[id_])}" for id_ in names if id_ in of and of[id_]["verdict"] == verdict]:
            clauses.append(getattr(wording, verdict.replace(" ", "_")).format(which=listed(which)))
    return clauses


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sentences(*parts: Sequence[str]) -> str:
    """Each part's clauses that are not empty as a sentence of their own, with semicolons between them."""
    texts = ["; ".join(filter(None, clauses)) for clauses in parts]
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in texts if text)


def as_stored(claim: Claim) -> dict[str, Any]:
    """The claim as claims.json has it."""
    direction, threshold = ("above", claim.above) if claim.above is not None else ("below", claim.below)
    return {
        "id": claim.id, "statement": claim.statement, "source": claim.source, "predicted": claim.predicted,
        "unit": claim.unit, "threshold": threshold, "direction": direction, "measure": claim.measure.text,
        "when": claim.when.text if claim.when else "", "of_every_unit": claim.of_every_unit,
    }  # fmt: skip


def judge_all(
    claims: Sequence[Claim],
    table: "DataFrame",
    registered: Sequence[Mapping[str, Any]],
    command: Callable[[Claim], str] = lambda claim: "",
    unregistered: str = "",
) -> list[dict[str, Any]]:
    """Every claim on the runs of the table, by the threshold that was registered in the folder when its run started.

    A claim that was not registered is judged by the code's threshold and marked, with the sentence `unregistered` where
    there is one; one that the code no longer has, or measures otherwise, is not run. `command(claim)` is what would run one
    that is not run for want of a run; "" for none. Where a condition does not hold, only a command that the claim itself names.
    """
    stored = {entry["id"]: entry for entry in registered}
    judged = []
    for claim in claims:
        entry = stored.pop(claim.id, None)
        facts = dict(entry or as_stored(claim)) | {"registered": entry is not None}
        if (then := _how(facts)) != _how(as_stored(claim)):
            why = f"When the run started it was to be measured as {then}; this version measures otherwise."
            judged.append(_verdict(facts, None, "not run", why, command(claim)))
            continue
        try:
            if claim.when and (unmet := claim.when.unmet(table)):
                # What the runs are like is no lack of runs: the study's own command would find it again.
                again = command(claim) if claim.decided_by else ""
                judged.append(_verdict(facts, None, "not run", _joined(unmet, unregistered), again))
                continue
            interval, how = claim.measure.compute(table)
        except NotRun as missing:
            judged.append(_verdict(facts, None, "not run", _joined(str(missing), unregistered), command(claim)))
        else:
            if (now := as_stored(claim)["threshold"]) != facts["threshold"]:
                how += f" Judged by the threshold that was registered; in this version it is {now:g}."
            facts |= _behind(claim.measure, table)
            judged.append(judge(facts, interval, _joined(how, unregistered)))
    gone = "This version no longer has the claim; the version that made the run judges it."
    return judged + [_verdict({**entry, "registered": True}, None, "not run", gone) for entry in stored.values()]


def _behind(measure: Measure, table: "DataFrame") -> dict[str, Any]:
    """What n counts, the metric, and its value in each of the runs that were read."""
    about: dict[str, Any] = {"units": measure.units} if measure.units else {}
    # Of a run by itself there is nothing to point at, and its name is that of a folder, which may be moved.
    if measure.metric and {"run", measure.metric} <= set(table) and len(table) > 1:
        own = measure.read(table)
        values = own[measure.metric].astype(object).where(own[measure.metric].notna(), None)
        about |= {"metric": measure.metric, "runs": dict(zip(own["run"], map(_plain, values), strict=True))}
    return about


def _plain(value: Any) -> Any:
    """A cell of a table as JSON has it."""
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _how(facts: Mapping[str, Any]) -> str:
    """The measure, and the condition under which it is taken."""
    return f"{facts['measure']}, when {facts['when']}" if facts.get("when") else str(facts["measure"])


def judge(facts: Mapping[str, Any], measured: Interval, how: str) -> dict[str, Any]:
    """Supported or refuted when the whole interval lies on one side of the threshold, else inconclusive.

    `facts` are as as_stored gives them. What is only a lower bound can show that the quantity is large, never that it
    is small; an upper bound the other way round.
    """
    threshold, direction = facts["threshold"], facts["direction"]
    above = measured.low > threshold and not measured.at_most
    below = measured.high < threshold and not measured.at_least
    supported, refuted = (above, below) if direction == "above" else (below, above)
    # The interval of a share takes units that did not finish for passed ones: it ends at 1 if all that finished passed.
    fails = facts.get("of_every_unit") and measured.high < 1
    stays_open = facts.get("of_every_unit") and not fails and measured.unknown > 0
    verdict: Verdict = (
        "refuted" if refuted or fails else "supported" if supported and not stays_open else "inconclusive"
    )
    other = "below" if direction == "above" else "above"
    rule = {
        "supported": f"the whole interval lies {direction} {threshold:g}",
        "refuted": f"the claim says {direction} {threshold:g}, and the whole interval lies {other} it",
        "inconclusive": f"the interval does not lie wholly on one side of {threshold:g}"
        + (", or may not where runs were censored" if measured.bound else ""),
    }[verdict]
    if fails:
        rule = f"the claim is of all {measured.n}, and a single one that fails refutes it"
    if stays_open and verdict == "inconclusive":
        rule = f"the claim is of all, and {measured.unknown} did not finish, which shows neither"
    return _verdict(facts, measured, verdict, f"{verdict}: {rule}. {how}")


def _verdict(
    facts: Mapping[str, Any], measured: Interval | None, verdict: Verdict, why: str, command: str = ""
) -> dict[str, Any]:
    """A claim as results.json has it; one that is not run carries no number, and the command that would run it."""
    names = ("id", "statement", "source", "predicted", "unit", "threshold", "direction", "measure", "registered")
    return {name: facts[name] for name in names} | {
        "measured": None if measured is None else measured.estimate,
        "interval95": None if measured is None else [measured.low, measured.high],
        "n": 0 if measured is None else measured.n,
        "bound": None if measured is None else measured.bound,
        "verdict": verdict,
        "why": why.strip(),
        **{name: facts[name] for name in ("when", "of_every_unit", "units", "metric", "runs") if facts.get(name)},
        **({"command": command} if command else {}),
    }
