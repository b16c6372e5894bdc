"""The tables of `measure`, for its report and for the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from retrofit.metrics.matrix_rows import (
    ACTIVATION_METRICS,
    LEFT_OUT,
    ActivationRow,
    MatrixRow,
    massive_note,
    summarise,
    token_note,
)
from retrofit.metrics.summaries import ORIGINAL_RIDGE, RELATIVE_RIDGE
from studycore.report import Table

RIDGE_NOTE = (
    f"Ridge {RELATIVE_RIDGE:g} of the mean eigenvalue; ff_gram_original: the original study's recipe, + {ORIGINAL_RIDGE:g} I; "
    f"act_kappa_without_largest: centred, without the {LEFT_OUT} largest directions."
)


def tables(
    weights: Sequence[MatrixRow], activations: Sequence[ActivationRow], why_none: str, notes: Mapping[str, str]
) -> list[Table]:
    """Weights, activations and summary; `why_none` says why there are no activations, `notes` what else a reader of
    "weights" and of "activations" should know.
    """
    if activations:
        said = (RIDGE_NOTE, token_note(activations)[0], massive_note(activations), notes.get("activations"))
        of_activations = table("FFN activations", activations, " ".join(filter(None, said)))
    else:
        of_activations = Table(
            "FFN activations", ("what", "value"), [(name, None) for name in ACTIVATION_METRICS], why_none
        )
    summary = summarise(weights, activations)
    note = "kappa over matrices of a role; activations over layers. Singular: of a rank below the smaller side; they come last in the median and stay out of the mean."
    return [table("Weights", weights, notes.get("weights", "")), of_activations, table("Summary", summary, note)]


def table(title: str, rows: Sequence[Any], note: str = "") -> Table:
    """A table of dataclasses, columns named by their fields."""
    lines = [[shown(value) for value in asdict(row).values()] for row in rows]
    return Table(title, tuple(asdict(rows[0])), lines, note)


def shown(value: Any) -> Any:
    """A value as tables have it."""
    return "infinite" if value == math.inf else value
