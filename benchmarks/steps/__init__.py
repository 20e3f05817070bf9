"""Benchmarks of what a training run does over and over: a whole step of each model, and the loading of its clips."""
