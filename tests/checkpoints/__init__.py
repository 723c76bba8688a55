"""Tests of the checkpoint files."""
