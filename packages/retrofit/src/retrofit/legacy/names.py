"""Names of metrics in run folders of earlier versions."""

from collections.abc import Mapping
from typing import Any

EARLIER = {"seed_ff_gram": "ff_gram_original", "seed_ff_gram_layers": "ff_gram_original_layers"}
"""Earlier name -> today's. What follows the original study's recipe was marked by "seed"."""


def with_todays_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl or of a CSV file, whichever version wrote it."""
    return {EARLIER.get(name, name): value for name, value in row.items()}
