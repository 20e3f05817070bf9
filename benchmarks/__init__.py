"""Benchmarks of fastvtp's ops beside the code they replace: `python -m benchmarks.tubelets` and its neighbours."""
