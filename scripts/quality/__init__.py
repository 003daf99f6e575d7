"""What the quality benchmarks share."""
