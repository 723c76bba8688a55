"""Tests of :mod:`tamiyo_stream.replay`."""
