"""Checkpoints: the file that carries a policy between offline training and the worker (design §12)."""
