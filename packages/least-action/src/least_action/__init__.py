"""Grokking on modular arithmetic: training, routing, curvature and progress measures, censored times to grok."""
