"""Benchmarks: each module prints one table and writes one JSON file to `benchmarks/results`."""
