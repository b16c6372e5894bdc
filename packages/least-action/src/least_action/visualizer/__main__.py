"""`python -m least_action.visualizer`."""

import sys

from least_action.visualizer import main
from studycore.cli import exit_code

if __name__ == "__main__":
    sys.exit(exit_code("least-action visualize", lambda: main(sys.argv[1:])))
