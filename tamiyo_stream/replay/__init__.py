"""Record and replay: a run's input entries in one file, decided again offline (design §14)."""
