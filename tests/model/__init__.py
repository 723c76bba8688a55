"""The reference network."""
