"""What the studies of *Geometry of Learning* share. Each module reads on its own; nothing here imports a study."""
