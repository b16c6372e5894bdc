"""What run folders say, for reports and claims: no training code is imported, and a folder from elsewhere reads the same."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studycore.configuration import config_hash, differences, from_dict, read_yaml, to_dict
from studycore.errors import DamagedRun, UserError
from studycore.files import read_json, sha256
from studycore.jobs import Job
from studycore.metrics_log import read_rows
from studycore.run_folder import read_manifest, read_results
from studycore.study import SCHEMA_VERSION, ManyRuns, Study, load

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
    unregistered: str = ""
    """Why no claim counts as registered although some were when the run started; "" where they do."""

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
    """The configuration of a run folder. UserError when it does not fit the study as it is; DamagedRun when it is no longer
    the one that the run began with."""
    manifest = read_manifest(folder)
    action = study.verbs.get(manifest["verb"])
    if action is None or not action.config:
        raise UserError(f"{folder}: its verb is none that {study.name} can read; use the version that made it")
    path = folder / "config.yaml"
    values = read_yaml(path)
    if config_hash(values) != manifest["configuration_hash"]:
        raise DamagedRun(f"{path}: was changed after the run started; restore it, or make the run again")
    return from_dict(load(action.config), values, str(path))


def manifest_of(study: Study, folder: Path) -> dict[str, Any]:
    """The manifest of a run of this study. UserError when the folder holds none, or another study's."""
    manifest = read_manifest(folder)
    if manifest["study"] != study.name:
        raise UserError(f"{folder}: is a run of {manifest['study']}; use that command")
    return manifest


def _planned(action: ManyRuns, config: Any, manifest: Mapping[str, Any]) -> dict[str, Job]:
    """The jobs of the plan by name; empty where the folder alone says which runs there are: it is older, and this version
    refuses its plan or has other runs in it."""
    try:
        jobs = {job.name: job for job in load(action.plan)(config)}
    except UserError:
        return {}
    is_of_this_version = manifest.get("schema_version") == SCHEMA_VERSION
    return jobs if is_of_this_version or manifest.get("jobs", jobs).keys() == jobs.keys() else {}


def identity_of(verb: str, config: Any, needs: Mapping[str, str]) -> str:
    """What makes a finished run the one that is wanted: verb, configuration, code schema, identities of what it needs."""
    return config_hash({"verb": verb, "config": to_dict(config), "schema": SCHEMA_VERSION, "needs": dict(needs)})


def identities_of(action: ManyRuns, jobs: Sequence[Job]) -> dict[str, str]:
    """The identity of each job of a plan, by its name."""
    identities: dict[str, str] = {}
    for job in jobs:
        identities[job.name] = identity_of(
            job.verb or action.of, job.config, {name: identities[name] for name in job.needs}
        )
    return identities


def _entries(recorded: Mapping[str, Any], jobs: Mapping[str, Job]) -> dict[str, dict[str, Any]]:
    """What is to be read: every run of the plan, whether the folder's manifest names it or not, and what else it names."""
    of_plan = job_entries(list(jobs.values()))
    for name in of_plan.keys() & recorded.keys():
        of_plan[name]["folder"] = recorded[name]["folder"]
    return {**of_plan, **{name: entry for name, entry in recorded.items() if name not in of_plan}}


def _check_planned(study: Study, action: ManyRuns, place: Path, job: Job, identity: str) -> None:
    """DamagedRun when the folder holds another run than the one that the plan has there."""
    manifest = read_manifest(place)
    if manifest["study"] != study.name:
        what = [f"one of {manifest['study']}"]
    elif manifest["verb"] != (job.verb or action.of):
        what = [f"the verb {manifest['verb']}"]
    else:
        what = differences(to_dict(read_config(study, place)), to_dict(job.config), "there", "planned")
    # Only a folder of this version's schema has an identity that can be compared.
    of_this_version = manifest.get("schema_version") == SCHEMA_VERSION
    if not what and of_this_version and manifest.get("identity") not in ("", None, identity):
        what = ["made from other runs than those that it needs"]
    if what:
        raise DamagedRun(f"{place} holds another run than the plan has there: {'; '.join(what)}")


def _check_whole(place: Path) -> None:
    """DamagedRun when the rows of a finished run end before the step that its results are of."""
    step = read_results(place)["metrics"].get("step")
    rows = read_rows(place / "metrics.jsonl")
    last = rows[-1]["step"] if rows else "none"
    if isinstance(step, int) and last != step:
        raise DamagedRun(
            f"{place}/metrics.jsonl: its last step is {last} and that of results.json {step}; restore it, or make the run again"
        )


def read_record(study: Study, folder: Path, just_ended: bool = False) -> Record:
    """What the folder says; `just_ended`: of one run that has reached its end and is about to be marked as done.

    UserError when it is no run of the study, or was made by a version that cannot be read.
    """
    manifest = manifest_of(study, folder)
    config, verb = read_config(study, folder), manifest["verb"]
    action, jobs, identities = study.verbs[verb], {}, {}
    if isinstance(action, ManyRuns):
        jobs = _planned(action, config, manifest)
        identities = identities_of(action, list(jobs.values()))
        entries = _entries(manifest.get("jobs") or job_entries(load(action.plan)(config)), jobs)
    else:
        name = folder.name.encode(errors="backslashreplace").decode()  # which no encoding need hold
        entries = {name: {"folder": ".", "arm": name, "labels": {}}}
    rows, missing, configs, others = [], {}, [], []
    failed = manifest.get("failed", {})
    for name, entry in entries.items():
        place, why = folder / entry["folder"], ""
        if jobs and name not in jobs:
            why = "the plan does not have it"
        elif is_done(place) or just_ended:
            try:
                if jobs and isinstance(action, ManyRuns):
                    _check_planned(study, action, place, jobs[name], identities[name])
                if (place / "results.json").exists():
                    _check_whole(place)  # and that results.json is as the study's columns take it
                of_run = read_config(study, place)
                columns = load(study.columns)(place, of_run)
            except DamagedRun as damage:
                if not isinstance(action, ManyRuns):
                    raise
                why = str(damage)
            else:
                configs.append(of_run)
                seed = getattr(of_run, "seed", 0)
                base = {"run": name, "arm": entry["arm"] or name, "seed": seed, "folder": str(place)}
                rows.append({**base, **entry["labels"], **columns})
                continue
        state = read_manifest(place)["state"] if (place / "manifest.json").exists() else "not begun"
        if state == "not begun" and manifest["state"] == "done" and name in manifest.get("chosen", entries):
            state = f"made before, and its folder {place} is not there now"
        missing[name] = why or failed.get(name, state)
        of_seed = {"seed": entry["seed"]} if "seed" in entry else {}
        lost = {"run": name, "arm": entry["arm"] or "", "failed": name in failed or state == "failed"}
        others.append({**entry["labels"], **of_seed, **lost})
    if study.planned and jobs and others:
        of_plan = load(study.planned)
        others = [
            {**(of_plan(name, jobs[name].config) if (name := lost["run"]) in jobs else {}), **lost} for lost in others
        ]
    registered, unregistered = registered_claims(folder, manifest)
    results, table = folder / "results.json", _table(rows)
    table.attrs["missing"] = others
    return Record(
        folder, verb, config, manifest, read_results(folder)["metrics"] if results.exists() else {}, table, missing,
        registered, configs[0] if configs else None, unregistered=unregistered,
    )  # fmt: skip


def registered_claims(folder: Path, manifest: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """(claims.json, "") if it is as it was when the run started; else none is registered, and the sentence says why, as does
    stderr."""
    path = folder / "claims.json"
    if not path.exists():
        if "claims_sha256" not in manifest:  # no run that registered any
            return [], ""
        what = "was removed after the run started"
    elif sha256(path) != manifest.get("claims_sha256"):
        what = "was changed after the run started"
    else:
        claims: list[dict[str, Any]] = read_json(path)
        return claims, ""
    print(f"{path}: {what}, so that every claim counts as exploratory", file=sys.stderr)
    return [], f"The run's claims.json {what}."


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
