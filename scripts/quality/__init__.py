"""Code that the quality benchmarks share."""
