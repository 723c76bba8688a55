"""Tests of the reference Urza catalogue."""
