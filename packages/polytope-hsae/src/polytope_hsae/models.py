"""The original study's name of `polytope_hsae.model`."""

from polytope_hsae.model import FlatExport, FlatSAE, HierarchicalSAE, SAEConfig, SparseAutoencoder, build_sae

__all__ = ["FlatExport", "FlatSAE", "HierarchicalSAE", "SAEConfig", "SparseAutoencoder", "build_sae"]
