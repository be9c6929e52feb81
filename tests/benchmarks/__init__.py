"""Benchmarks: ratios taken in one run, medians of repeats. Run them with `make bench`."""
