"""What is made, what is claimed, what is reported, and the study's declaration: a module each in the real studies."""

from functools import partial

from studycore import cli
from studycore.claims import Claim
from studycore.jobs import Job, base_of, config_of, grid_points, seeds_from
from studycore.measures import mean, paired_ratio
from studycore.metrics_log import read_rows
from studycore.report import Report, Table
from studycore.study import ManyRuns, OneRun, Study
from toy_study.config import Config, Sweep


def plan(sweep, kind=Config):
    points = grid_points(sweep.base, {}, sweep.arms, seeds_from(kind, sweep.base, sweep.seeds))
    return [Job(p.name, config_of(kind, p.values, f"experiment {p.name}"), arm=p.arm) for p in points]


def sweep_of_seeds(config, seeds):
    return "sweep", Sweep(base=base_of(config), seeds=seeds)


def claims(verb, config):
    sooner = paired_ratio("time", "momentum", "plain", censored="censored")
    return [
        Claim("sooner", "Momentum brings the loss below 0.01 sooner", "Polyak 1964", "yes", "times", sooner, below=1.0),
        Claim("fits", "The sum is fitted", "calculus", "0", "mean squared error", mean("loss"), below=0.01),
    ]


def columns(folder, config):
    rows = read_rows(folder / "metrics.jsonl")
    times = [row["step"] for row in rows if row["loss"] < 0.01]
    return {"loss": rows[-1]["loss"], "time": max(1, (times or [rows[-1]["step"]])[0]), "censored": not times}


def report(record):
    fits = Table("Fits", ("run", "loss", "time"), record.table[["run", "loss", "time"]].values.tolist())
    metrics = {"runs": len(record.table)} if record.verb == "sweep" else {}
    return Report("A sum", STUDY.question, f"{len(record.table)} fits.", [fits], metrics=metrics)


TRAIN = OneRun("fit once", "toy_study.config:Config", "toy_study.train:train", seeds="toy_study.cli:sweep_of_seeds")
SWEEP = ManyRuns("fit with each arm", "toy_study.config:Sweep", "toy_study.cli:plan", of="train")
STUDY = Study(
    name="toy", distribution="studycore", package="toy_study", question="Does momentum fit a sum sooner?",
    verbs={"train": TRAIN, "sweep": SWEEP}, claims="toy_study.cli:claims", columns="toy_study.cli:columns",
    report="toy_study.cli:report",
)  # fmt: skip
main = partial(cli.main, STUDY)
