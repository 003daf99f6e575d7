"""The parts of scripts/benchmark_speed.py: how to measure, what to train, and the sections."""
