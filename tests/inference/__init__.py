"""Collating, engine and stage."""
