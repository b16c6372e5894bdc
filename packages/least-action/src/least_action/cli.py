"""The command `least-action`: the study's declaration."""

import sys

from studycore.cli import main as run_command
from studycore.study import ManyRuns, OneRun, Study

STUDY = Study(
    name="least-action",
    distribution="least-action",
    package="least_action",
    question="When does a network that has memorised modular arithmetic come to generalise, and what speeds it up?",
    verbs={
        "train": OneRun(
            "train one configuration, or several seeds of it",
            config="least_action.config:TrainerConfig",
            train="least_action.train:train",
            options="least_action.config:TrainOptions",
            seeds="least_action.plan:sweep_of_seeds",
        ),
        "sweep": ManyRuns(
            "train arms, grids and seeds, and report on all of them",
            config="least_action.config:SweepConfig",
            plan="least_action.plan:plan",
            of="train",
        ),
    },
    claims="least_action.claims:claims",
    columns="least_action.claims:columns",
    report="least_action.report:report",
)


def main(argv: list[str] | None = None) -> int:
    return run_command(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
