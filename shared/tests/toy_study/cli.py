"""The study's declaration."""

from studycore.cli import main as run_command
from studycore.study import ManyRuns, OneRun, Study

TRAIN = OneRun(
    "fit one line", config="toy_study.config:Config", train="toy_study.train:train",
    seeds="toy_study.plan:sweep_of_seeds", train_together="toy_study.train:train_together",
)  # fmt: skip
SWEEP = ManyRuns("fit with each arm", config="toy_study.config:Sweep", plan="toy_study.plan:plan", of="train")
STUDY = Study(
    name="toy", distribution="studycore", package="toy_study", question="Does momentum fit a line sooner?",
    verbs={"train": TRAIN, "sweep": SWEEP}, claims="toy_study.claims:claims", columns="toy_study.claims:columns",
    report="toy_study.report:report",
)  # fmt: skip


def main(argv=None):
    return run_command(STUDY, argv)
