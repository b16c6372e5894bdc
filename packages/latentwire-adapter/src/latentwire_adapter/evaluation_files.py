"""What a scored arm writes, for training, claims and report alike; no training code is imported."""

from pathlib import Path
from typing import Any

from studycore.files import read_json

PREDICTIONS = "predictions.json"


def read_predictions(folder: Path) -> dict[str, Any]:
    """Arm, seconds, and a row for each question."""
    predictions: dict[str, Any] = read_json(folder / PREDICTIONS)
    return predictions
