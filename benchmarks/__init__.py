"""Benchmarks of fibers beside its peers: `python -m benchmarks --help` (see README.md)."""
