"""What is reported: formulas of radii and points (radii.py), a model's metrics (evaluate.py), results of a run (final.py)."""
