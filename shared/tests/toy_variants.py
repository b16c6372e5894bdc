"""What the toy study has no use for: several stages, a start from another run's weights, several runs trained together."""

import dataclasses
from dataclasses import dataclass, field

import torch
import toy_study.cli
import toy_study.config
from toy_study import train as toy

from studycore import cli
from studycore.bounds import PositiveInt
from studycore.checkpoints import load_latest
from studycore.errors import UserError
from studycore.study import ManyRuns, OneRun


@dataclass(frozen=True)
class Config(toy_study.config.Config):
    stages: PositiveInt = 1
    """Loops over the steps, each with an optimizer of its own."""


@dataclass(frozen=True)
class Sweep(toy_study.config.Sweep):
    goes_on_from: dict[str, str] = field(default_factory=dict)
    """Arms that begin with the weights of another arm's run of the same seed."""
    together: bool = False


def plan(sweep):
    jobs = []
    for job in toy_study.cli.plan(sweep, Config):
        before = sweep.goes_on_from.get(job.arm)
        needs = (job.name.replace(job.arm, before),) if before else ()
        jobs.append(dataclasses.replace(job, needs=needs, together="fits" if sweep.together else ""))
    return jobs


def begun(config, run):
    """The model, with the weights of the run that this one needs."""

    def start():
        model = toy.build(vars(config))
        for folder in run.needs.values():
            model.load_state_dict(load_latest(folder / "checkpoints").model)
        return model

    run.begin(data={"points": f"seed {config.seed}"})
    return run.model(toy.build, toy.replay, {"input_x": torch.eye(3)}, start=start)


def fit(config, run):
    """The training, which halts when it has saved and when it has made its update, so that several go in step."""
    model = begun(config, run)
    for stage in range(config.stages):
        if run.has_passed(f"stage {stage}"):
            continue
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), config.lr, config.momentum))
        for _ in run.steps(config.steps, f"stage {stage}", more=stage + 1 < config.stages):
            if run.every(5):
                loss = toy.evaluate(config, run, model)
            if run.saving(config.checkpoint_every):
                run.save()
            yield
            if run.ended():
                break
            toy.update(config, run, model, optimizer)
            yield
    run.results({"final_loss": loss}, {"weights": model.weight})


def train(config, run):
    for _ in fit(config, run):
        pass


def train_together(configs, runs):
    loops = dict(zip(runs, map(fit, configs, runs), strict=True))
    while loops:
        for run, loop in list(loops.items()):
            try:
                next(loop)
                continue
            except StopIteration:
                run.finished()
            except UserError as error:
                run.failed(str(error))
            del loops[run]


TRAIN = OneRun(
    "fit once", config="toy_variants:Config", train="toy_variants:train", seeds="toy_study.cli:sweep_of_seeds",
    train_together="toy_variants:train_together",
)  # fmt: skip
SWEEP = ManyRuns("fit with each arm", config="toy_variants:Sweep", plan="toy_variants:plan", of="train")
STUDY = dataclasses.replace(toy_study.cli.STUDY, verbs={"train": TRAIN, "sweep": SWEEP})


def main(argv=None):
    return cli.main(STUDY, argv)
