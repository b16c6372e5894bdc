"""From the geometry of concepts in a language model's unembedding to a hierarchical sparse autoencoder."""
