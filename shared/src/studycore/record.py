"""What run folders say, for reports and claims: no training code is imported, and a folder from elsewhere reads the same."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studycore.configuration import from_dict, read_yaml
from studycore.errors import UserError
from studycore.files import read_json, sha256
from studycore.metrics_log import read_rows
from studycore.run_folder import read_manifest, read_results
from studycore.study import ManyRuns, Study, load

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Record:
    """A run folder, of one run or of many."""

    folder: Path
    verb: str
    config: Any
    manifest: dict[str, Any]
    metrics: dict[str, Any]
    """Of results.json; empty while the run is unfinished."""
    table: "pd.DataFrame"
    """One row per finished run: run, arm, seed, folder, labels of its job, and the study's columns.

    Its attrs["missing"] lists the other runs, for measures: run, arm ("" where it has none), labels, seed where it is known,
    whether it failed, and the study's columns that the plan alone gives (Study.planned).
    """
    missing: Mapping[str, str]
    """Of many runs: those that are not done, with the reason."""
    registered: list[dict[str, Any]]
    """claims.json: what the run is judged by."""
    first_config: Any = None
    """Of the table's first run."""
    claims: Sequence[Mapping[str, Any]] = ()
    """The verdicts, as studycore.claims.judge_all gives them; a report's answer is made from them."""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of metrics.jsonl."""
        return read_rows(self.folder / "metrics.jsonl")

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """Of arrays.safetensors, as numpy arrays; empty where the run has none."""
        return read_arrays(self.folder)


def read_arrays(folder: Path) -> dict[str, Any]:
    """The arrays of a run's figures, as numpy arrays; empty where it has none. UserError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / "arrays.safetensors"
    try:
        return load_file(path) if path.exists() else {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it or make the run again") from None


def read_config(study: Study, folder: Path) -> Any:
    """The configuration of a run folder. UserError when it does not fit the study as it is."""
    action = study.verbs.get(read_manifest(folder)["verb"])
    if action is None or not action.config:
        raise UserError(f"{folder}: its verb is none that {study.name} can read; use the version that made it")
    path = folder / "config.yaml"
    return from_dict(load(action.config), read_yaml(path), str(path))


def manifest_of(study: Study, folder: Path) -> dict[str, Any]:
    """The manifest of a run of this study. UserError when the folder holds none, or another study's."""
    manifest = read_manifest(folder)
    if manifest["study"] != study.name:
        raise UserError(f"{folder}: is a run of {manifest['study']}; use that command")
    return manifest


def _planned_columns(study: Study, verb: str, config: Any) -> dict[str, dict[str, Any]]:
    """Name -> the columns that the plan gives of a run; empty where there is no plan, or one that this version refuses."""
    action = study.verbs[verb]
    if not isinstance(action, ManyRuns):
        return {}
    try:
        jobs = load(action.plan)(config)
    except UserError:  # an older folder's: then the arms alone say where a run belongs
        return {}
    return {job.name: load(study.planned)(job.name, job.config) for job in jobs}


def read_record(study: Study, folder: Path, just_ended: bool = False) -> Record:
    """What the folder says; `just_ended`: of one run that has reached its end and is about to be marked as done.

    UserError when it is no run of the study, or was made by a version that cannot be read.
    """
    manifest = manifest_of(study, folder)
    config, verb = read_config(study, folder), manifest["verb"]
    if isinstance(study.verbs[verb], ManyRuns):
        entries = manifest.get("jobs") or job_entries(load(study.verbs[verb].plan)(config))  # type: ignore[union-attr]
    else:
        name = folder.name.encode(errors="backslashreplace").decode()  # which no encoding need hold
        entries = {name: {"folder": ".", "arm": name, "labels": {}}}
    rows, missing, configs, others = [], {}, [], []
    failed = manifest.get("failed", {})
    for name, entry in entries.items():
        place = folder / entry["folder"]
        if is_done(place) or just_ended:
            if (place / "results.json").exists():
                read_results(place)  # which the study's columns take as it should be
            of_run = read_config(study, place)
            configs.append(of_run)
            base = {"run": name, "arm": entry["arm"] or name, "seed": getattr(of_run, "seed", 0), "folder": str(place)}
            rows.append({**base, **entry["labels"], **load(study.columns)(place, of_run)})
        else:
            state = read_manifest(place)["state"] if (place / "manifest.json").exists() else "not begun"
            if state == "not begun" and manifest["state"] == "done" and name in manifest.get("chosen", entries):
                state = f"made before, and its folder {place} is not there now"
            missing[name] = failed.get(name, state)
            of_seed = {"seed": entry["seed"]} if "seed" in entry else {}
            lost = {"run": name, "arm": entry["arm"] or "", "failed": name in failed or state == "failed"}
            others.append({**entry["labels"], **of_seed, **lost})
    if study.planned and others:
        columns = _planned_columns(study, verb, config)
        others = [{**columns.get(lost["run"], {}), **lost} for lost in others]
    results, table = folder / "results.json", _table(rows)
    table.attrs["missing"] = others
    return Record(
        folder, verb, config, manifest, read_results(folder)["metrics"] if results.exists() else {}, table, missing,
        registered_claims(folder, manifest), configs[0] if configs else None,
    )  # fmt: skip


def registered_claims(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """claims.json, if it is as it was when the run started; else none is registered, and stderr says so."""
    path = folder / "claims.json"
    if not path.exists():
        return []
    if sha256(path) != manifest.get("claims_sha256"):
        print(f"{path}: was changed after the run started, so that every claim counts as exploratory", file=sys.stderr)
        return []
    claims: list[dict[str, Any]] = read_json(path)
    return claims


def job_entries(jobs: Any, places: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """What the manifest of many runs says of its jobs; `places` are folders other than their names."""
    return {
        job.name: {
            "folder": (places or {}).get(job.name, job.name), "arm": job.arm, "labels": dict(job.labels),
            "needs": list(job.needs), "seed": getattr(job.config, "seed", 0),
        }
        for job in jobs
    }  # fmt: skip


def is_done(folder: Path) -> bool:
    """Whether the run finished."""
    return (folder / "manifest.json").exists() and read_manifest(folder)["state"] == "done"


def _table(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame(
        [row | {"folder": ""} for row in rows], columns=None if rows else ["run", "arm", "seed", "folder"]
    )
    # Objects: pandas keeps text as UTF-8, which cannot hold every path.
    table["folder"] = pd.Series([row["folder"] for row in rows], dtype=object)
    return table
