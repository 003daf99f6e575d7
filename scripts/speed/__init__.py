"""The parts of scripts/benchmark_speed.py: how to measure, what to train, and a module for each section."""
