"""The language model, the compressor, the adapter, and what they make of token ids."""
