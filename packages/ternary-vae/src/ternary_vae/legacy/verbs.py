"""The verbs `inspect` and `import`: what they read of the command line. Heavy imports stay inside."""

from pathlib import Path
from typing import Any

from studycore.cli import Parser
from studycore.configuration import build, read_arguments
from studycore.errors import UserError
from studycore.study import Study
from ternary_vae.config import ArchitectureConfig, ImportOptions

SUMMARY_OF_INSPECT = "what is in a checkpoint, does it rebuild, and if not, why"
USAGE_OF_IMPORT = """usage: ternary-vae import FILE FOLDER [--key-map MAP.yaml] [architecture flags]

FILE: a .pt file. FOLDER: the run folder to make. What the tensors do not show and the file's
configuration does not say must be given as flags; those given win over the file's.
"""


def inspect_command(argv: list[str]) -> None:
    """`inspect CHECKPOINT`."""
    parser = Parser(prog="ternary-vae inspect", description=SUMMARY_OF_INSPECT)
    parser.add_argument("checkpoint", help="a run folder, a checkpoint's own folder, or a .pt file")
    options = parser.parse_args(argv)
    from ternary_vae.legacy.inspection import inspect

    inspect(options.checkpoint)


def import_into_a_run(study: Study, argv: list[str]) -> None:
    """`import FILE FOLDER [--key-map MAP.yaml] [architecture flags]`: the finished run of an old file, and what it says."""

    def read(arguments: list[str]) -> dict[str, Any]:
        return read_arguments([ImportOptions, ArchitectureConfig], arguments, "ternary-vae import", study.package)[1]

    if not argv or {"--help", "-h"} & set(argv):
        print(USAGE_OF_IMPORT)
        read(["--help"])
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        raise UserError("import: needs a .pt file and the folder to make; give both first, then the flags")
    given, file, folder = read(argv[2:]), Path(argv[0]), Path(argv[1])
    options = build(ImportOptions, {name: given.pop(name) for name in ("key_map", "view") if name in given})
    from ternary_vae.legacy.importing import import_file

    imported = import_file(study, file, folder, given, options, ["ternary-vae", "import", *argv])
    names = [name for name in ("coverage", "hierarchy", "somers_d", "richness") if name in imported.metrics]
    shown = [f"{name} {imported.metrics[name]:.6g}" for name in names]
    for note in imported.notes:
        print(note)
    print(f"{folder}: imported {file.name}: {', '.join(shown)}")
