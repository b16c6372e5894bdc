"""A hyperbolic VAE over the ternary operations: coverage, 3-adic hierarchy, sweeps whose findings hold."""
