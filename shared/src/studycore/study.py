"""What a study declares of itself. Functions and classes are named "module:name" and imported when they are used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

SCHEMA_VERSION = 5
"""Of run folders. A change of what a training computes or writes raises it, and finished runs are not taken over."""


@dataclass(frozen=True)
class Verb:
    """A verb that only one study has."""

    summary: str
    function: str
    """`function(arguments)`, given what stands after the verb."""
    config: str = ""
    """Dataclass of the settings of the finished run that it makes without training, such as an import; else empty."""


@dataclass(frozen=True)
class OneRun:
    """A verb that makes one run."""

    summary: str
    config: str
    """Dataclass of the run's settings; each field is a flag."""
    train: str
    """`train(config, run)` with an open studycore.run.Run."""
    options: str = "studycore.options:TrainOptions"
    """Dataclass of the flags that change no number, TrainOptions or a subclass."""
    first_argument: str = ""
    """Field that an argument without a flag gives."""
    default_config: str = ""
    """The study's configuration that is read when --config is not given."""
    resolve: str = ""
    """`resolve(file, flags) -> values` of the configuration; by default flags win over the file."""
    seeds: str = ""
    """`seeds(config, n) -> configuration` of the study's verb with many runs, which --seeds starts."""
    train_together: str = ""
    """`train_together(configs, runs)` for jobs that a plan marks with the same word, where one batched model is faster."""
    reports_unfinished: bool = False
    """Whether `report` also takes a run that has not reached its end, once it has a row of metrics."""
    has_steps: bool = True
    """Whether `train` has a loop of steps, so that a dry run can time one."""


@dataclass(frozen=True)
class ManyRuns:
    """A verb that makes many runs, each a job in a folder under its own."""

    summary: str
    config: str
    plan: str
    """`plan(config) -> list[studycore.jobs.Job]`."""
    of: str
    """The verb with one run whose flags change the configuration's `base`."""
    resolve: str = ""
    """`resolve(file, flags, flags_of_a_run) -> values`; by default flags of a run are added to `base`."""
    estimate: str = ""
    """`estimate(config, device) -> list of sentences` of a dry run: time and room of what no step of a job shows."""


Action = Verb | OneRun | ManyRuns


@dataclass(frozen=True)
class Study:
    """A study. Its command has the common verbs (report, resume, runs, doctor) besides `verbs`, which come first."""

    name: str
    """Command, folder and compose service."""
    distribution: str
    package: str
    """What is imported; its configurations lie in the package's folder configs/."""
    question: str
    verbs: Mapping[str, Action]
    claims: str
    """`claims(verb, config) -> sequence of studycore.claims.Claim` that a run is judged by."""
    columns: str
    """`columns(run folder, config) -> {name: value}`: what the claims read of one finished run."""
    report: str
    """`report(studycore.record.Record) -> studycore.report.Report`."""
    planned: str = ""
    """`planned(name, config) -> {column: value}`: those that a run's configuration alone gives, so that measures know of
    which arms a run is that failed or is not finished."""
    doctor: str = ""
    """`doctor() -> list[(what, holds, what to do)]`: the study's own checks."""
    libraries: tuple[str, ...] = ("accelerate",)
    """Distributions whose versions are recorded besides the common ones."""
    decided_by: str = ""
    """Arguments of its command whose runs decide its claims, such as "sweep --config full"; a claim may name others."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Earlier names of flags -> names of fields."""


def load(name: str) -> Any:
    """What "module:name" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
