"""Tests of the Tolaria probe, on small real models."""
