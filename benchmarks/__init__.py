"""Measures the daemon against named baselines: `python -m benchmarks`."""
