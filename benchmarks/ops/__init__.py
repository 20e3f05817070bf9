"""One benchmark per op of the kernels: its cases, its cost model and its peers, each with a command line of its own."""
