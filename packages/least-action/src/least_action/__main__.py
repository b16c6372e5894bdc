"""`python -m least_action`, as torchrun starts it."""

import sys

from least_action.cli import main

sys.exit(main())
