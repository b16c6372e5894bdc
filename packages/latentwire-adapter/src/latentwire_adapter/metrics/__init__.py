"""Scores of answers, errors of reconstruction, retention, and bits."""
