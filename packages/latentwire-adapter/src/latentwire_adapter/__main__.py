"""`python -m latentwire_adapter`."""

import sys

from latentwire_adapter.cli import main

if __name__ == "__main__":
    sys.exit(main())
