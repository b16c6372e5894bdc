"""The command `least-action`: the study's declaration."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from least_action.config import QUESTION
from studycore.cli import main as run_command
from studycore.study import ManyRuns, OneRun, Study, Verb

STUDY = Study(
    name="least-action",
    distribution="least-action",
    package="least_action",
    question=QUESTION,
    decided_by="sweep --config full",
    verbs={
        "train": OneRun(
            "train one configuration, or several seeds of it",
            config="least_action.config:TrainerConfig",
            train="least_action.train:train",
            options="least_action.config:TrainOptions",
            seeds="least_action.plan:sweep_of_seeds",
            reports_unfinished=True,
        ),
        "sweep": ManyRuns(
            "train arms, grids and seeds, and report on all of them",
            config="least_action.config:SweepConfig",
            plan="least_action.plan:plan",
            of="train",
        ),
        "visualize": Verb("open the run explorer in a browser", "least_action.visualizer:main"),
    },
    claims="least_action.claims:claims",
    columns="least_action.claims:columns",
    planned="least_action.claims:planned",
    report="least_action.report:report",
)


@dataclass(frozen=True)
class Trainer:
    """A configuration with its run folder, for use from a notebook: `Trainer(config, folder).train()`."""

    config: Any
    """A least_action.config.TrainerConfig."""
    folder: Path

    def train(self, resume: bool = False, extra_epochs: int = 0, **options: Any) -> Any:
        """Trains as `least-action train` does, with its report; `options` are TrainOptions' fields. Returns the run's
        MetricsHistory."""
        from least_action.config import TrainOptions
        from least_action.history import MetricsHistory
        from studycore.execution import make_run

        given = TrainOptions(resume=resume, extra_epochs=extra_epochs, **options)
        make_run(STUDY, "train", self.config, self.folder, given, ["Trainer.train"], resume)
        return MetricsHistory.load(self.folder)


main = partial(run_command, STUDY)
