"""The command `studycore`: what concerns all studies."""

import sys
from pathlib import Path

from studycore.cli import Parser
from studycore.errors import UserError


def main() -> int:
    """`studycore index [--runs DIR]` writes runs/index.html."""
    parser = Parser(prog="studycore", description="What concerns all studies of Geometry of Learning.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    index = verbs.add_parser("index", help="write index.html over all runs, with every claim of every study")
    index.add_argument("--runs", default="runs", help="the folder that holds the studies' runs")
    parser.add_argument("--version", action="store_true", help="print the version")
    if sys.argv[1:] == ["--version"]:
        from importlib import metadata

        print(f"studycore {metadata.version('studycore')}")
        return 0
    try:
        options = parser.parse_args()
        from studycore.report import write_index

        print(write_index(Path(options.runs)))
    except UserError as error:
        print(f"studycore: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
