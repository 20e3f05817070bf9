"""The training loop, its settings, and what a kind of training adds to it."""
