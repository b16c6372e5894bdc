"""The run explorer in a browser: `least-action visualize`, a thin layer over least_action.analysis."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """The verb `visualize`. UserError when what it needs is not installed or the folder is not there."""
    import argparse
    from importlib.util import find_spec
    from pathlib import Path

    from least_action.analysis.loader import RUNS
    from studycore.cli import Parser
    from studycore.errors import UserError

    parser = Parser(
        prog="least-action visualize",
        description="Open the run explorer in a browser; it reads run folders and writes nothing.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", default=str(RUNS), help="folder with runs, such as that of one sweep")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=None, help="port; by default the first free one from 7860")
    given = parser.parse_args(list(arguments))
    if missing := [name for name in ("duckdb", "gradio", "plotly") if find_spec(name) is None]:
        raise UserError(f"{missing[0]}: is not installed; pip install 'least-action[explorer]' brings it")
    if not Path(given.folder).is_dir():
        raise UserError(f"{given.folder}: there is no such folder; name the one that least-action writes its runs to")
    from least_action.visualizer.app import serve

    serve(Path(given.folder), given.host, given.port)
