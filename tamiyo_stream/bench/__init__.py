"""Benchmarks that need no extra tool: each returns its figures, ratios measured side by side in one run."""
