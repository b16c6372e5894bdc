"""`python -m retrofit`, as torchrun starts it."""

import sys

from retrofit.cli import main

sys.exit(main())
