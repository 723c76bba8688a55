"""Tests of the Kasmina seed host, on small real models in training."""
