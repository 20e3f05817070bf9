"""Each file measures the ops of one folder of the kernels, and holds their cases, cost models and command line. One
counts instead of timing: the calls that retrieval by matching saves."""
