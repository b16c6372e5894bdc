"""Files of the original study, and why a checkpoint does not rebuild."""
