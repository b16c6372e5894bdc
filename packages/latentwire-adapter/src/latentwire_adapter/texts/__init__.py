"""Paragraphs with questions of this project's own making, in SQuAD's format: they need no hub."""
