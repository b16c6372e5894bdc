"""The command `ternary-vae`: the study's declaration."""

import sys

from studycore.cli import main as run_command
from studycore.study import ManyRuns, OneRun, Study, Verb

STUDY = Study(
    name="ternary-vae",
    distribution="ternary-vae",
    package="ternary_vae",
    question="A hyperbolic VAE over all ternary operations: does it cover them, and do its radii follow the 3-adic hierarchy?",
    verbs={
        "train": OneRun(
            "train from scratch: coverage, then hierarchy, or both at once",
            config="ternary_vae.config:TrainConfig",
            train="ternary_vae.train:train",
            train_together="ternary_vae.train:train_together",
            seeds="ternary_vae.plan:sweep_of_seeds",
        ),
        "finetune": OneRun(
            "train a checkpoint's projections, after verifying it",
            config="ternary_vae.config:TrainConfig",
            train="ternary_vae.train:train",
            first_argument="start",
            default_config="finetune",
            resolve="ternary_vae.plan:finetune_values",
        ),
        "sweep": ManyRuns(
            "train phases of arms over seeds, and report on all of them",
            config="ternary_vae.config:SweepConfig",
            plan="ternary_vae.plan:plan",
            of="train",
            resolve="ternary_vae.plan:sweep_values",
        ),
        "evaluate": Verb(
            "every metric of a checkpoint, beside its baselines", "ternary_vae.evaluation:evaluate_command"
        ),
        "inspect": Verb(
            "what is in a checkpoint, does it rebuild, and if not, why",
            "ternary_vae.legacy.inspection:inspect_command",
        ),
        "import": Verb(
            "bring in a .pt file of the original study's layout",
            "ternary_vae.legacy.importing:import_command",
            config="ternary_vae.config:TrainConfig",
        ),
    },
    claims="ternary_vae.claims:claims",
    columns="ternary_vae.claims:columns",
    report="ternary_vae.report:report",
    aliases={"max_epochs": "epochs"},
)


def main(argv: list[str] | None = None) -> int:
    return run_command(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
