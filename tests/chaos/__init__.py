"""Faults on purpose, in the bus, the disk and the processes of a worker, and the proof that nothing is lost."""
