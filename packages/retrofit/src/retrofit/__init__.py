"""Geometry-aware training of pre-trained language models: conditioning measured, penalties, transports, arms compared."""
