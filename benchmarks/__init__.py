"""The benchmarks hold fastvtp against the code that it replaces.

The folders stand in one order, and each imports only from those before it: the harness that measures, the peers that
stand for other people's code, the ops and the training steps that hold fastvtp against them, the report that turns
results into tables, and the commands for a GPU.
"""
