"""Benchmarks of the operators and of scoring: `python -m benchmarks` runs them and prints one table."""
