"""`python -m retrofit.setup_data`, run by `make setup`: WordNet, whose glosses the embedded default reads."""

import sys

from studycore import wordnet
from studycore.errors import UserError


def main() -> None:
    try:
        folder, origin = wordnet.fetch()
    except UserError as error:
        sys.exit(f"retrofit.setup_data: error: {error}")
    print(f"WordNet is in {folder} ({origin})")


if __name__ == "__main__":
    main()
