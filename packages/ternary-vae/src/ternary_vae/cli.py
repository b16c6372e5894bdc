"""The command `ternary-vae`: the study's declaration."""

from functools import partial

from studycore.cli import main as run_command
from studycore.study import ManyRuns, OneRun, Study, Verb
from ternary_vae import evaluate_verb
from ternary_vae.config import QUESTION
from ternary_vae.legacy import verbs

STUDY = Study(
    name="ternary-vae",
    distribution="ternary-vae",
    package="ternary_vae",
    question=QUESTION,
    decided_by="sweep --config full",
    verbs={
        "train": OneRun(
            "train from scratch: coverage, then hierarchy, or both at once",
            config="ternary_vae.config:TrainConfig",
            train="ternary_vae.train:train",
            train_together="ternary_vae.train:train_together",
            seeds="ternary_vae.plan:sweep_of_seeds",
            reports_unfinished=True,
            default_config="ball",
        ),
        "finetune": OneRun(
            "train a checkpoint's projections, after verifying it",
            config="ternary_vae.config:TrainConfig",
            train="ternary_vae.train:train",
            first_argument="start",
            default_config="finetune",
            reports_unfinished=True,
            resolve="ternary_vae.plan:finetune_values",
        ),
        "sweep": ManyRuns(
            "train phases of arms over seeds, and report on all of them",
            config="ternary_vae.config:SweepConfig",
            plan="ternary_vae.plan:plan",
            of="train",
            resolve="ternary_vae.plan:sweep_values",
            estimate="ternary_vae.estimate:estimate",
        ),
        "evaluate": Verb(evaluate_verb.SUMMARY, "ternary_vae.evaluate_verb:evaluate_command"),
        "inspect": Verb(verbs.SUMMARY_OF_INSPECT, "ternary_vae.legacy.verbs:inspect_command"),
        "import": Verb(
            "bring in a .pt file of the original study's layout",
            "ternary_vae.cli:import_command",
            config="ternary_vae.config:TrainConfig",
        ),
    },
    claims="ternary_vae.claims:claims",
    columns="ternary_vae.columns:columns",
    planned="ternary_vae.columns:planned",
    report="ternary_vae.report:report",
    aliases={"max_epochs": "epochs"},
)


def import_command(argv: list[str]) -> None:
    """`import FILE FOLDER [--key-map MAP.yaml] [architecture flags]`."""
    verbs.import_into_a_run(STUDY, argv)


main = partial(run_command, STUDY)
