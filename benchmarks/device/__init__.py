"""What is run on a GPU: the one command that tests and measures everything, the search for better tiles, and the table
of attention backends that follows from a measurement."""
