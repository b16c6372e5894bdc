"""The command `studycore`: what concerns all studies."""

import sys
from importlib import metadata
from pathlib import Path

from studycore.cli import Parser, exit_code


def main() -> int:
    """`studycore index [--runs DIR]` writes runs/index.html."""
    parser = Parser(prog="studycore", description="What concerns all studies of Geometry of Learning.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    index = verbs.add_parser("index", help="write index.html over all runs, with every claim of every study")
    index.add_argument("--runs", default="runs", help="the folder that holds the studies' runs")
    parser.add_argument("--version", action="version", version=f"studycore {metadata.version('studycore')}")

    def act() -> None:
        options = parser.parse_args()
        from studycore.report import write_index

        print(write_index(Path(options.runs)))

    return exit_code("studycore", act)


if __name__ == "__main__":
    sys.exit(main())
