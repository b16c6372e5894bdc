"""Results and reports: results.json, one self-contained report.html, the same as report.md, and an index over all runs."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from studycore.errors import UserError
from studycore.files import read_json, read_text, write_atomic, write_json
from studycore.run_folder import list_runs, state_of
from studycore.study import Study

EXPLORATORY = "exploratory: added after the run"
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


@dataclass
class Picture:
    """An SVG or PNG file in the run folder, with the sentence that says what it shows."""

    path: Path
    caption: str


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
    results, manifest = read_json(folder / "results.json"), read_json(folder / "manifest.json")
    claims = _claims_of(results)
    context = {
        "report": report,
        "claims": claims,
        "verdicts": verdict_counts(claims),
        "exploratory": EXPLORATORY,
        "manifest": manifest,
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
        "jobs": [(name, entry["folder"]) for name, entry in manifest.get("jobs", {}).items()],
        "pictures": [
            (_inline(picture.path, f"picture{i}"), picture.caption) for i, picture in enumerate(report.pictures)
        ],
    }
    page = _environment().get_template("report.html.j2").render(context)
    write_atomic(folder / "report.html", page)
    places = [(picture.path.relative_to(folder).as_posix(), picture.caption) for picture in report.pictures]
    context["pictures"] = places
    write_atomic(folder / "report.md", _environment(escape=False).get_template("report.md.j2").render(context))
    about = {"question": report.question, "answer": report.answer, "figure": list(places[0]) if places else None}
    write_json(folder / "report.json", about)
    return folder / "report.html"


def _claims_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims of a results.json, which earlier versions wrote with fewer fields."""
    return [{"bound": None, "registered": False, **claim} for claim in results["claims"]]


def verdict_counts(claims: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how many claims got which verdict; "" without claims."""
    if not claims:
        return ""
    verdicts = ("supported", "refuted", "inconclusive", "not run")
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in verdicts}
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return (
        f"Of {len(claims)} claims: {listed}." if len(claims) > 1 else f"Its one claim: {parts[0].removeprefix('1 ')}."
    )


def placed(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Where a claim's figures lie on a line of 200 with the threshold in its middle; the farthest one lies at 10 or 190."""
    low, high = claim["interval95"]
    threshold, point = claim["threshold"], claim["measured"]
    span = max(abs(value - threshold) for value in (low, high, point)) or 1.0
    places = {
        k: round(100 + 90 * (v - threshold) / span, 1) for k, v in (("low", low), ("point", point), ("high", high))
    }
    bound = claim["bound"]
    return places | {"open_high": bound in ("at least", "unknown"), "open_low": bound in ("at most", "unknown")}


GENERATOR = 'name="generator" content="studycore"'
"""What the pages made here carry, so that no other page is replaced."""


def write_index(root: Path) -> Path:
    """runs/index.html: question, answer, main figure and claims of the newest finished run of each study and verb, all
    runs, and the installed studies that have none. UserError when an index.html of somebody else's is there."""
    studies = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        runs = list_runs(root, folder.name)
        newest: dict[str, Any] = {}
        listed = []
        for path, manifest in runs:
            state, place = state_of(path, manifest), path.relative_to(root).as_posix()
            listed.append((place, manifest, state, (path / "report.html").exists()))
            if state == "done" and (path / "results.json").exists():
                try:
                    newest[manifest["verb"]] = _index_entry(
                        path, place, manifest["verb"], f"{folder.name}{len(listed)}"
                    )
                except UserError as error:
                    print(f"passed over: {error}", file=sys.stderr)
        if runs:
            studies.append((folder.name, list(newest.values()), listed[::-1]))
    root.mkdir(parents=True, exist_ok=True)
    if (root / "index.html").exists() and GENERATOR not in read_text(root / "index.html"):
        raise UserError(f"--runs: {root} holds an index.html of somebody else's; move it, or name another folder")
    shown = {name for name, *_ in studies}
    missing = [(study.name, study.question) for study in installed_studies() if study.name not in shown]
    context = {"studies": studies, "missing": missing, "exploratory": EXPLORATORY}
    write_atomic(root / "index.html", _environment().get_template("index.html.j2").render(context))
    return root / "index.html"


def _index_entry(folder: Path, place: str, verb: str, prefix: str) -> dict[str, Any]:
    """What the index shows of one run. Pages of earlier versions have no report.json: then the claims stand alone."""
    claims = _claims_of(read_json(folder / "results.json"))
    about = read_json(folder / "report.json") if (folder / "report.json").exists() else {}
    place_of_figure, caption = about.get("figure") or ("", "")
    shown = bool(place_of_figure) and (folder / place_of_figure).is_file()
    return {
        "path": place, "verb": verb, "claims": claims, "verdicts": verdict_counts(claims),
        "question": about.get("question", ""), "answer": about.get("answer", ""),
        "has_report": (folder / "report.html").exists(), "has_jobs": bool(read_json(folder / "manifest.json").get("jobs")),
        "figure": (_inline(folder / place_of_figure, re.sub(r"\W", "", prefix)), caption) if shown else None,
    }  # fmt: skip


def installed_studies() -> list[Study]:
    """The studies that name themselves in the entry points `studycore.studies`."""
    return [entry.load() for entry in sorted(metadata.entry_points(group="studycore.studies"), key=lambda e: e.name)]


def number(value: Any) -> str:
    """Three significant digits; None is "not run"."""
    if value is None:
        return "not run"
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}"


def figure_of(claim: Mapping[str, Any]) -> str:
    """What was measured, with its interval. Where runs were censored the interval has no end on that side."""
    bound, (low, high) = claim.get("bound"), map(number, claim["interval95"])
    low = "not reached" if bound in ("at most", "unknown") else low
    high = "not reached" if bound in ("at least", "unknown") else high
    return f"{bound + ' ' if bound else ''}{number(claim['measured'])} [{low}, {high}]"


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
    print(claims_text(read_json(folder / "results.json")["claims"]))
    print(f"report: {folder / 'report.html'}")


def claims_text(claims: Sequence[Mapping[str, Any]]) -> str:
    """The claims as lines for a terminal."""
    lines = []
    for claim in claims:
        lines.append(f"  {claim['verdict'].upper():<13}{claim['statement']}")
        if claim["measured"] is not None:
            figure = f"{figure_of(claim)} {claim['unit']}, n = {claim['n']}"
            lines.append(f"{'':<15}measured {figure}; predicted {claim['predicted']}")
        else:
            lines.append(f"{'':<15}{claim['why']}")
        if not claim.get("registered"):
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
    environment.filters["cell"] = lambda value: " ".join(number(value).replace("|", "\\|").split())
    return environment


def _inline(path: Path, prefix: str) -> Any:
    """The picture as markup: SVG as it is, its identifiers distinguished by `prefix`; PNG as a data address."""
    import base64

    from markupsafe import Markup

    if path.suffix == ".png":
        return Markup(f'<img alt="" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">')
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return Markup(svg)
