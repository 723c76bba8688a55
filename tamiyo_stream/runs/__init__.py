"""Rolling cache of the training runs: their state, its order and norms, its saved form. No bus I/O."""
