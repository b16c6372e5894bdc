"""The command `ternary-vae`: the study's declaration, and the verbs that only it has. Heavy imports stay inside them."""

import sys
from pathlib import Path
from typing import Any

from studycore.cli import Parser, main as run_command
from studycore.errors import UserError
from studycore.study import ManyRuns, OneRun, Study, Verb
from ternary_vae.config import QUESTION

STUDY = Study(
    name="ternary-vae",
    distribution="ternary-vae",
    package="ternary_vae",
    question=QUESTION,
    verbs={
        "train": OneRun(
            "train from scratch: coverage, then hierarchy, or both at once",
            config="ternary_vae.config:TrainConfig",
            train="ternary_vae.train:train",
            train_together="ternary_vae.train:train_together",
            seeds="ternary_vae.plan:sweep_of_seeds",
            default_config="ball",
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
        "evaluate": Verb("every metric of a checkpoint, beside its baselines", "ternary_vae.cli:evaluate_command"),
        "inspect": Verb(
            "what is in a checkpoint, does it rebuild, and if not, why",
            "ternary_vae.cli:inspect_command",
        ),
        "import": Verb(
            "bring in a .pt file of the original study's layout",
            "ternary_vae.cli:import_command",
            config="ternary_vae.config:TrainConfig",
        ),
    },
    claims="ternary_vae.claims:claims",
    columns="ternary_vae.claims:columns",
    report="ternary_vae.report:report",
    aliases={"max_epochs": "epochs"},
)


USAGE_OF_IMPORT = """usage: ternary-vae import FILE FOLDER [--key-map MAP.yaml] [architecture flags]

FILE: a .pt file. FOLDER: the run folder to make. What the tensors do not show and the file's
configuration does not say must be given as flags; those given win over the file's.
"""


def evaluate_command(argv: list[str]) -> None:
    """`evaluate CHECKPOINT [--output FILE]`."""
    parser = Parser(prog="ternary-vae evaluate", description=STUDY.verbs["evaluate"].summary)
    parser.add_argument("checkpoint", help="a run folder, or a checkpoint's own folder")
    parser.add_argument("--output", help="a JSON file for the metrics as well")
    options = parser.parse_args(argv)
    from ternary_vae.evaluate_verb import evaluate

    evaluate(options.checkpoint, options.output)


def inspect_command(argv: list[str]) -> None:
    """`inspect CHECKPOINT`."""
    parser = Parser(prog="ternary-vae inspect", description=STUDY.verbs["inspect"].summary)
    parser.add_argument("checkpoint", help="a run folder, a checkpoint's own folder, or a .pt file")
    options = parser.parse_args(argv)
    from ternary_vae.legacy.inspection import inspect

    inspect(options.checkpoint)


def import_command(argv: list[str]) -> None:
    """`import FILE FOLDER [--key-map MAP.yaml] [architecture flags]`."""
    from studycore.configuration import build, read_arguments
    from ternary_vae.config import ArchitectureConfig, ImportOptions

    def read(arguments: list[str]) -> dict[str, Any]:
        return read_arguments([ImportOptions, ArchitectureConfig], arguments, "ternary-vae import", STUDY.package)[1]

    if not argv or {"--help", "-h"} & set(argv):
        print(USAGE_OF_IMPORT)
        read(["--help"])
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        raise UserError("import: needs a .pt file and the folder to make; give both first, then the flags")
    given, file, folder = read(argv[2:]), Path(argv[0]), Path(argv[1])
    options = build(ImportOptions, {name: given.pop(name) for name in ("key_map", "view") if name in given})
    from ternary_vae.legacy.importing import import_file

    imported = import_file(STUDY, file, folder, given, options, ["ternary-vae", "import", *argv])
    names = [name for name in ("coverage", "hierarchy", "somers_d", "richness") if name in imported.metrics]
    shown = [f"{name} {imported.metrics[name]:.6g}" for name in names]
    for note in imported.notes:
        print(note)
    print(f"{folder}: imported {file.name}: {', '.join(shown)}")


def main(argv: list[str] | None = None) -> int:
    return run_command(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
