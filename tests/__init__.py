"""Tests of Tamiyo stream; the folders mirror the packages."""
