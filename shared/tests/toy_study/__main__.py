import sys

from toy_study.cli import main

sys.exit(main())
