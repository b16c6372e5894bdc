"""`python -m ternary_vae`, as torchrun starts it."""

import sys

from ternary_vae.cli import main

sys.exit(main())
