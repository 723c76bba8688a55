"""Tests of the reference Urabrask crucible."""
