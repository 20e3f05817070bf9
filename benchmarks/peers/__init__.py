"""Peers are what fastvtp is held against: the usual code written out in plain PyTorch, and adapters to the libraries
that do the same work."""
