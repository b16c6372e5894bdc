"""Formats of the original study and names of earlier versions, where the study reads them."""
