"""The three scenarios in which the original study sums up its results, and the table of a folder of its files."""

from pathlib import Path

from retrofit.legacy.original_json import OriginalResult, read_folder
from retrofit.metrics.summaries import percent_change
from studycore.report import Table, table_text

SCENARIOS = {
    1: "geometry rescues well",
    2: "partial rescue",
    3: "minimal effect",
}
CONDITIONING_BOUNDS = (percent_change(4738, 2250), percent_change(4738, 3850))
"""Percent from step 0 that divide the original study's scenarios 1, 2 and 3: halfway between its figures (1,500-2,000;
2,500-3,500; 4,200, from 4,738)."""
PERPLEXITY_BOUNDS = (percent_change(10.9, 9.0), percent_change(10.9, 10.25))
"""The same for perplexity (8-9; 9-10; 10.5, from 10.9)."""
ORIGINAL_STANDARD = {"cond": percent_change(4738, 4600), "ppl": percent_change(10.9, 10.7)}
"""What continued training does in all three of the original study's scenarios, percent from step 0."""
HARM = {"cond": 100 * (1 - 4200 / 4600), "ppl": 100 * (1 - 10.5 / 10.7)}
"""Percent by which geometry is better than continued training in the original study's scenario 3: as much worse is harm."""
QUANTITIES = {"cond": "conditioning", "ppl": "perplexity"}


def scenario(geometry: OriginalResult, standard: OriginalResult | None) -> str:
    """Which of the original study's three scenarios the data fall in, as a sentence.

    The scenarios set geometry beside continued training that hardly moves. Where it moves more (or less) than in the
    original study, geometry's change is taken by as much less (more): what training does by itself is no rescue. Beyond
    HARM on the worse side of continued training it is none of the three.
    """
    if standard is None:
        return "No scenario: the original study's scenarios compare with the method standard, which is not there."
    levels, beside = {}, {}
    for key, bounds in (("cond", CONDITIONING_BOUNDS), ("ppl", PERPLEXITY_BOUNDS)):
        own, control = geometry.change(key), standard.change(key)
        if own is None or control is None:
            what = "ff_gram_original" if key == "cond" else "perplexity"
            return f"No scenario: {what} was not measured for both methods, or is not positive."
        ratio = (1 + own / 100) / (1 + control / 100)
        levels[key] = _level(100 * (ratio * (1 + ORIGINAL_STANDARD[key] / 100) - 1), bounds)
        beside[key] = 100 * (ratio - 1)
    harmed = [key for key in QUANTITIES if beside[key] > HARM[key]]
    if harmed:
        worse = " and ".join(f"{QUANTITIES[key]} {beside[key]:+.3g} %" for key in harmed)
        findings = [f"beside continued training {worse}"]
        findings += [
            f"{QUANTITIES[k]} as in scenario {levels[k]} ({SCENARIOS[levels[k]]})" for k in levels if k not in harmed
        ]
        return f"The data fall in none of the original study's three scenarios: geometry does harm ({'; '.join(findings)})."
    one, other = levels["cond"], levels["ppl"]
    how = "(geometry beside continued training)"
    if one == other:
        return f"The data fall in the original study's scenario {one}: {SCENARIOS[one]} {how}."
    return (
        f"The data fall in none of the original study's three scenarios: conditioning as in scenario {one} ({SCENARIOS[one]}), "
        f"perplexity as in scenario {other} ({SCENARIOS[other]}) {how}."
    )


def _level(change: float, bounds: tuple[float, float]) -> int:
    return 1 if change <= bounds[0] else 2 if change <= bounds[1] else 3


def print_folder(folder: Path) -> None:
    """The comparison table and the scenario of a folder of the original study's files."""
    results = read_folder(folder)
    columns = ("method", "conditioning", "final", "change %", "perplexity", "final", "change %")
    rows = [
        (name, r.initial["cond"], r.final["cond"], r.change("cond"), r.initial["ppl"], r.final["ppl"], r.change("ppl"))
        for name, r in results.items()
    ]
    print(table_text(Table("", columns, rows)))
    if "geometry" in results:
        print(scenario(results["geometry"], results.get("standard")))
