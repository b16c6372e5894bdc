"""`python -m polytope_hsae`, as torchrun starts it."""

import sys

from polytope_hsae.cli import main

sys.exit(main())
