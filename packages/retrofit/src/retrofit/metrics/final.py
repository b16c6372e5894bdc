"""What a run's results.json holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from retrofit.metrics.summaries import update_means


def results(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of results.json: the last evaluation, the first one's perplexity, means over updates, and `about`."""
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    first, last = evaluations[0], evaluations[-1]
    return {
        **{f"initial_{name}": first[name] for name in ("val_ppl", "val_loss")},
        **{name: value for name, value in last.items() if name != "kind" and not isinstance(value, list)},
        **update_means(rows),
        **about,
    }
