"""The command `studycore`: what concerns all studies."""

import argparse
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from studycore.cli import Parser, exit_code
from studycore.errors import UserError


def main() -> int:
    """`studycore index` writes runs/index.html; `studycore reference-lm` is about the language model that comes along."""
    parser = Parser(prog="studycore", description="What concerns all studies of Geometry of Learning.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    index = verbs.add_parser("index", help="write index.html over all runs, with every claim of every study")
    index.add_argument("--runs", default="runs", help="the folder that holds the studies' runs")
    lm = verbs.add_parser("reference-lm", help="the language model that comes along: info | train | verify")
    lm.add_argument("action", choices=("info", "train", "verify"))
    lm.add_argument("flags", nargs=argparse.REMAINDER, help="of train; train --help lists them")
    parser.add_argument("--version", action="version", version=f"studycore {metadata.version('studycore')}")

    def act() -> None:
        options = parser.parse_args()
        if options.verb == "reference-lm":
            _reference_lm(options.action, options.flags)
            return
        from studycore.report import write_index

        print(write_index(Path(options.runs)))

    return exit_code("studycore", act)


def _reference_lm(action: str, flags: list[str]) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise UserError("reference-lm: transformers is not installed; `pip install 'studycore[lm]'`")
    from studycore.language import reference_lm

    if action == "train":
        from studycore.language.training import train_command

        train_command(flags)
    elif flags:
        raise UserError(f"reference-lm {action}: takes no flags, and got {' '.join(flags)}; leave them out")
    else:
        {"info": reference_lm.info, "verify": reference_lm.verify}[action]()


if __name__ == "__main__":
    sys.exit(main())
