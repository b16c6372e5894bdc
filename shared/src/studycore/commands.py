"""The command `studycore`: what concerns all studies."""

import sys
from pathlib import Path

from studycore.cli import Parser, exit_code, main as run_command
from studycore.language.study import STUDY, command


def main() -> int:
    """Runs `studycore index`, `studycore reference-lm ...`, or a common verb on the latter's runs."""
    arguments = sys.argv[1:] or [""]  # without a verb: a mistake, which names those there are
    if arguments[0] == "reference-lm":
        return exit_code(STUDY.name, lambda: command(arguments[1:]))
    return run_command(STUDY, arguments)


def index(arguments: list[str]) -> None:
    """`studycore index` writes runs/index.html."""
    from studycore.report import write_index

    parser = Parser(prog="studycore index", description=STUDY.verbs["index"].summary)
    parser.add_argument("--runs", default="runs", help="the folder that holds the studies' runs")
    print(write_index(Path(parser.parse_args(arguments).runs)))


if __name__ == "__main__":
    sys.exit(main())
