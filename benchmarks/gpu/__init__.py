"""The check of a CUDA machine: `python -m benchmarks.gpu` builds, tests and measures, and writes `results/`."""
