"""Results and reports: results.json, one self-contained report.html, the same as report.md, and an index over all runs."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from studycore.errors import UserError
from studycore.files import read_json, read_text, write_atomic, write_json
from studycore.run_folder import list_runs, read_results, state_of
from studycore.study import Study

if TYPE_CHECKING:
    from studycore.statistics import Interval

EXPLORATORY = "exploratory: not registered before the run"
"""Of claims that were not registered in the run's folder when it started."""


@dataclass
class Table:
    """Rows of text or numbers under a title; None is shown as "not run"."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    folded: bool = False
    """Shown after the figures, and closed until it is asked for."""


NOT_APPLICABLE = "\N{EN DASH}"
"""The cell of what does not apply to a row; None, "not run", is what a run would fill in."""


@dataclass
class Picture:
    """An SVG or PNG file in the run folder, with the sentence that says what it shows."""

    path: Path
    caption: str
    table: Table | None = None
    """The numbers of the figure, folded under it."""


@dataclass
class Report:
    """What a report says, in this order."""

    title: str
    question: str
    """What was asked, in one sentence."""
    answer: str
    """What was found, in one or two sentences."""
    tables: Sequence[Table] = field(default_factory=list)
    pictures: Sequence[Picture] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)
    """Deviations, limits, decisions."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What results.json says besides what the training wrote: of many runs, everything."""
    pages: Mapping[str, Path] = field(default_factory=dict)
    """What a page shows -> the page, in the run folder: it is linked under the main figure."""


def write_results(
    folder: Path, study: str, verb: str, metrics: Mapping[str, Any], claims: Sequence[Mapping[str, Any]]
) -> None:
    """results.json; ValueError for NaN or infinity."""
    write_json(
        folder / "results.json",
        {"schema_version": 1, "study": study, "verb": verb, "metrics": dict(metrics), "claims": list(claims)},
    )


def write_report(folder: Path, report: Report, missing: Mapping[str, str] | None = None) -> Path:
    """report.html and report.md in the run folder, from `report`, results.json and manifest.json. Returns the former.

    `missing`: names of runs of many that are not done, with the reason; they get a table of their own, after the study's.
    report.json holds what the index shows of the report: question, answer, main figure.
    """
    if missing:
        unfinished = Table("Runs that did not finish", ("run", "reason"), list(missing.items()))
        report = replace(report, tables=[*report.tables, unfinished])
    results, manifest = read_results(folder), read_json(folder / "manifest.json")
    claims = _claims_of(results)
    context = {
        "report": report,
        "title": f"{report.title}: {name}" if (name := configuration_name(manifest["argv"])) else report.title,
        "claims": claims,
        "verdicts": verdict_counts(claims),
        "exploratory": EXPLORATORY,
        "manifest": manifest,
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
        "pages": {text: path.relative_to(folder).as_posix() for text, path in report.pages.items()},
        "jobs": {name: entry["folder"] for name, entry in manifest.get("jobs", {}).items()},
        "pictures": [
            (_inline(picture.path, f"picture{i}"), picture.caption, f"picture{i}", picture.table)
            for i, picture in enumerate(report.pictures)
        ],
    }
    page = _environment().get_template("report.html.j2").render(context)
    write_atomic(folder / "report.html", page)
    places = [(picture.path.relative_to(folder).as_posix(), picture.caption) for picture in report.pictures]
    context["pictures"] = places
    context["tables"] = [*(picture.table for picture in report.pictures if picture.table), *report.tables]
    write_atomic(folder / "report.md", _environment(escape=False).get_template("report.md.j2").render(context))
    about = {"question": report.question, "answer": report.answer, "figure": list(places[0]) if places else None}
    write_json(folder / "report.json", about)
    return folder / "report.html"


def _claims_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims of a results.json, which earlier versions wrote with fewer fields."""
    texts = dict.fromkeys(("command", "measure", "when", "units", "metric"), "")
    defaults: dict[str, Any] = {"bound": None, "registered": False, "of_every_unit": False, "runs": {}, **texts}
    return [{**defaults, **claim} for claim in results["claims"]]


def verdict_counts(claims: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how many claims got which verdict; "" without claims."""
    if not claims:
        return ""
    from studycore.claims import listed

    parts = [f"{len(group)} {verdict}" for verdict, group in by_verdict(claims)]
    if len(claims) == 1:
        return f"Its one claim: {parts[0].removeprefix('1 ')}."
    return f"Of {len(claims)} claims: {listed(parts)}."


def by_verdict(claims: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Each verdict that some claims got, with these claims in their order."""
    from studycore.claims import Verdict  # which imports numpy, and a command's help need not

    groups = [(verdict, [claim for claim in claims if claim["verdict"] == verdict]) for verdict in get_args(Verdict)]
    return [(verdict, group) for verdict, group in groups if group]


def placed(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Where a claim's figures lie on a line of 200 with the threshold in its middle; the farthest one lies at 10 or 190.

    `holds` is (left, width) of the side where the claim holds. A share that must be 1, of every unit, lies between 0 at 10
    and 1 at 190, and holds at that end alone.
    """
    low, high = claim["interval95"]
    threshold, point = claim["threshold"], claim["measured"]
    middle, centre, span = 100, threshold, max(abs(value - threshold) for value in (low, high, point)) or 1.0
    if every := bool(claim.get("of_every_unit")):
        middle, centre, span = 10, 0.0, 0.5
    values = (("low", low), ("point", point), ("high", high), ("threshold", threshold))
    places = {name: round(middle + 90 * (value - centre) / span, 1) for name, value in values}
    bound = claim["bound"]
    return places | {
        "open_high": bound in ("at least", "unknown"), "open_low": bound in ("at most", "unknown"),
        "holds": (184, 12) if every else (100, 100) if claim["direction"] == "above" else (0, 100),
    }  # fmt: skip


GENERATOR = 'name="generator" content="studycore"'
"""What the pages made here carry, so that no other page is replaced."""


def write_index(root: Path) -> Path:
    """runs/index.html: of each study and verb question, answer, main figure and claims, all runs, and the installed
    studies that have none. UserError when an index.html of somebody else's is there.

    A verb's configurations are asked different things, so that each keeps its newest finished run; the one with the most
    judged claims is shown, the others are linked under it.
    """
    studies = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        runs = list_runs(root, folder.name)
        newest: dict[Any, dict[str, Any]] = {}
        table = []
        for path, manifest in runs:
            state, place = state_of(path, manifest), path.relative_to(root).as_posix()
            table.append((place, manifest, state, (path / "report.html").exists()))
            if state == "done" and (path / "results.json").exists():
                try:
                    entry = _index_entry(path, place, manifest, re.sub(r"\W", "", f"{folder.name}{len(table)}"))
                except UserError as error:
                    print(f"passed over: {error}", file=sys.stderr)
                else:
                    key = entry["verb"], entry["configuration"] or tuple(sorted(c["id"] for c in entry["claims"]))
                    newest.pop(key, None)  # so that the newest stands last
                    newest[key] = entry
        if runs:
            studies.append((folder.name, _by_verb(list(newest.values())), table[::-1]))
    root.mkdir(parents=True, exist_ok=True)
    if (root / "index.html").exists() and GENERATOR not in read_text(root / "index.html"):
        raise UserError(f"--runs: {root} holds an index.html of somebody else's; move it, or name another folder")
    shown = {name for name, *_ in studies}
    missing = [(study.name, study.question) for study in installed_studies() if study.name not in shown]
    context = {"studies": studies, "missing": missing, "exploratory": EXPLORATORY}
    write_atomic(root / "index.html", _environment().get_template("index.html.j2").render(context))
    return root / "index.html"


def _by_verb(entries: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The entries of each verb, first the one with the most judged claims, of equal ones the newest; verbs likewise."""

    def judged(entry: Mapping[str, Any]) -> int:
        return sum(claim["verdict"] != "not run" for claim in entry["claims"])

    verbs: dict[str, list[dict[str, Any]]] = {}
    newest_first = entries[::-1]
    for entry in sorted(newest_first, key=judged, reverse=True):
        verbs.setdefault(entry["verb"], []).append(entry)
    return list(verbs.values())


def configuration_name(argv: Sequence[str]) -> str:
    """What --config named, without a file's suffix; "" where the command had none."""
    for item, following in zip(argv, [*argv[1:], ""], strict=False):
        if item == "--config" or item.startswith("--config="):
            return re.sub(r"\.ya?ml$", "", item.removeprefix("--config").removeprefix("=") or following)
    return ""


def _index_entry(folder: Path, place: str, manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the index shows of one run, with `name` before its identifiers. Pages of earlier versions have no report.json: then
    the claims stand alone."""
    claims = _claims_of(read_results(folder))
    about = read_json(folder / "report.json") if (folder / "report.json").exists() else {}
    place_of_figure, caption = about.get("figure") or ("", "")
    shown = bool(place_of_figure) and (folder / place_of_figure).is_file()
    return {
        "path": place, "verb": manifest["verb"], "configuration": configuration_name(manifest["argv"]),
        "claims": claims, "verdicts": verdict_counts(claims),
        "question": about.get("question", ""), "answer": about.get("answer", ""),
        "has_report": (folder / "report.html").exists(), "name": name,
        "jobs": {job: f"{place}/{entry['folder']}" for job, entry in manifest.get("jobs", {}).items()},
        "figure": (_inline(folder / place_of_figure, name), caption, name) if shown else None,
    }  # fmt: skip


def installed_studies() -> list[Study]:
    """The studies that name themselves in the entry points `studycore.studies`."""
    return [entry.load() for entry in sorted(metadata.entry_points(group="studycore.studies"), key=lambda e: e.name)]


def number(value: Any) -> str:
    """Three significant digits; None is "not run"."""
    if value is None:
        return "not run"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}"


def figure_of(of: "Mapping[str, Any] | Interval") -> str:
    """A figure with its interval, of a judged claim or as it is, such as "0.01 [-0.28, 0.30]".

    All three have the decimals of two significant digits of the interval's half-width, and more where an end would be rounded
    onto the claim's threshold. Where runs were censored the interval has no end on that side.
    """
    threshold = None
    if isinstance(of, Mapping):
        bound, point, (low, high), threshold = of.get("bound"), of["measured"], of["interval95"], of.get("threshold")
    else:
        bound, point, low, high = of.bound, of.estimate, of.low, of.high
    decimals = _decimals(low, high)
    if decimals is not None and threshold is not None:
        ends = [end for end in (low, high) if end != threshold]
        finer = range(decimals, decimals + 4)
        decimals = next(
            (d for d in finer if _rounded(threshold, d) not in [_rounded(end, d) for end in ends]), decimals
        )
    point, low, high = (_rounded(value, decimals) for value in (point, low, high))
    low = "not reached" if bound in ("at most", "unknown") else low
    high = "not reached" if bound in ("at least", "unknown") else high
    return f"{bound + ' ' if bound else ''}{point} [{low}, {high}]"


def _decimals(low: float, high: float) -> int | None:
    """Decimals of two significant digits of the half-width, negative where it is 100 or more; None without a width."""
    half = (high - low) / 2
    if not math.isfinite(half) or half <= 1e-9 * max(abs(low), abs(high)):
        return None
    return 1 - math.floor(math.log10(half))


def _rounded(value: float, decimals: int | None) -> str:
    """With that many decimals, and powers of ten for what is very small or large."""
    if decimals is None or not math.isfinite(value):
        return number(value)
    nearest = round(value, decimals) + 0.0  # never -0
    if -7 < decimals < 7:
        return f"{nearest:,.{max(decimals, 0)}f}"
    return f"{nearest:.{max(0, math.floor(math.log10(abs(nearest))) + decimals)}e}" if nearest else "0"


def table_text(table: Table) -> str:
    """A table as aligned columns for a terminal; the first column stands left."""
    cells = [list(table.columns), *[[number(cell) for cell in row] for row in table.rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def print_report(folder: Path) -> None:
    """What was found and the claims, on the terminal, and where the report is."""
    text = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    print("\n".join(line.replace("**", "") for line in text[:5] if line))
    print(claims_text(read_results(folder)["claims"]))
    print(f"report: {folder / 'report.html'}")


def n_of(claim: Mapping[str, Any]) -> str:
    """How many of what the figure is made from."""
    return f"{number(claim['n'])} {claim.get('units', '')}".strip()


def every_unit(claim: Mapping[str, Any]) -> str:
    """What stands behind the figure of a share that must be 1."""
    return ", and every one must pass" if claim.get("of_every_unit") else ""


def claims_text(claims: Sequence[Mapping[str, Any]]) -> str:
    """The claims as lines for a terminal."""
    lines = []
    for claim in _claims_of({"claims": claims}):
        lines.append(f"  {claim['verdict'].upper():<13}{claim['statement']}")
        if claim["measured"] is not None:
            figure = f"{figure_of(claim)} {claim['unit']}, n = {n_of(claim)}{every_unit(claim)}"
            lines.append(f"{'':<15}measured {figure}; predicted {claim['predicted']}")
        else:
            lines.append(f"{'':<15}{claim['why']}")
            if claim["command"]:
                lines.append(f"{'':<15}to run it: {claim['command']}")
        if not claim["registered"]:
            lines.append(f"{'':<15}{EXPLORATORY}")
    return "\n".join(lines)


def _environment(escape: bool = True) -> Any:
    import jinja2

    templates = Path(str(resources.files("studycore"))) / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["placed"] = placed
    environment.filters["figure_of"] = figure_of
    environment.filters["every_unit"] = every_unit
    environment.filters["n_of"] = n_of
    environment.filters["by_verdict"] = by_verdict
    environment.filters["marked"] = _marked
    environment.filters["cell"] = lambda value: " ".join(number(value).replace("|", "\\|").split())
    return environment


def _marked(text: str) -> Any:
    """What stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _inline(path: Path, prefix: str) -> Any:
    """The picture as markup that is named by its caption, whose identifier is `prefix`: SVG as it is, its own identifiers
    distinguished by the same; PNG as a data address."""
    import base64

    from markupsafe import Markup

    if path.suffix == ".png":
        return Markup(
            f'<img aria-labelledby="{prefix}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        )
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-labelledby="{prefix}" ', 1)
    return Markup(svg)
