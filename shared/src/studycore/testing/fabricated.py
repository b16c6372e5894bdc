"""Run folders with made-up outcomes, for tests that ask which verdicts the claims of a configuration can get.

The folders are those that real runs would leave: same plan, same configurations, same claims registered. Only what was
measured is invented, so that a claim which no outcome can support, or none refute, is found before anything is run.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from studycore.claims import Verdict, as_stored, judge_all
from studycore.configuration import to_dict
from studycore.jobs import Job
from studycore.record import Record, identities_of, identity_of, job_entries, read_record
from studycore.report import write_results
from studycore.run_folder import RunFolder, create_run
from studycore.study import ManyRuns, Study, load


@dataclass(frozen=True)
class Outcome:
    """What a run is made to have measured."""

    rows: Sequence[Mapping[str, Any]] = ()
    """Of metrics.jsonl, each with a "step"."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Of results.json; the step of the last row stands there as well."""


def fabricate(
    study: Study, verb: str, config: Any, folder: Path, outcome: Callable[[Job], Outcome | None]
) -> dict[str, dict[str, Any]]:
    """Writes the folder of the run, or of all runs of the plan, and returns the judged claims by their ids.

    `outcome` is asked for every job (of one run: a job of the folder's name); None leaves that run out, as one that
    failed.
    """
    action = study.verbs[verb]
    if isinstance(action, ManyRuns):
        jobs: list[Job] = load(action.plan)(config)
        identities = identities_of(action, jobs)
        whole = _create(study, verb, config, folder)
        whole.update(jobs=job_entries(jobs))
        failed = {}
        for job in jobs:
            if (made := outcome(job)) is None:
                failed[job.name] = "fabricated"
            _write(study, job.verb or action.of, job.config, folder / job.name, made, identities[job.name])
        whole.update(failed=failed)
        whole.finish("done", "fabricated")
    else:
        _write(study, verb, config, folder, outcome(Job(folder.name, config)), identity_of(verb, config, {}))
    return judged(study, read_record(study, folder))


def judged(study: Study, record: Record) -> dict[str, dict[str, Any]]:
    """The verdict on every claim of a run folder, by its id, as reports have it."""
    claims = load(study.claims)(record.verb, record.config)
    verdicts = judge_all(claims, record.table, record.registered, unregistered=record.unregistered)
    return {claim["id"]: claim for claim in verdicts}


def judged_as(id_: str, of: str, measured: float = 2.5, bound: str | None = None) -> dict[str, Any]:
    """A judged claim as far as a report's answer reads it."""
    measured_as = None if of == "not run" else measured
    return {"id": id_, "verdict": of, "measured": measured_as, "bound": bound, "n": 5, "registered": True}


def every_verdict(*ids: str) -> Iterator[list[dict[str, Any]]]:
    """The claims of these ids with every combination of verdicts."""
    for verdicts in itertools.product(get_args(Verdict), repeat=len(ids)):
        yield [judged_as(id_, of) for id_, of in zip(ids, verdicts, strict=True)]


def _create(study: Study, verb: str, config: Any, folder: Path, **more: Any) -> RunFolder:
    claims = [as_stored(claim) for claim in load(study.claims)(verb, config)]
    return create_run(
        folder, study=study, verb=verb, config=to_dict(config), argv=["fabricated"], seeds=[],
        devices={"device": "none", "threads": 0}, data={}, claims=claims, **more,
    )  # fmt: skip


def _write(study: Study, verb: str, config: Any, folder: Path, outcome: Outcome | None, identity: str) -> None:
    if outcome is None:
        return
    run = _create(study, verb, config, folder, identity=identity)
    for row in outcome.rows:
        run.metrics.append(row)
    last = {"step": outcome.rows[-1]["step"]} if outcome.rows else {}
    write_results(folder, study.name, verb, {**last, **outcome.metrics}, [])
    run.finish("done", "fabricated")
