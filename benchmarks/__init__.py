"""Benchmarks: `make bench-NAME`; figures worth keeping are in docs/performance.md."""
