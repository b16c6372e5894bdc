"""Every formula that is reported: summaries, spectra, perplexity, what a transport does, what `measure` measures."""
