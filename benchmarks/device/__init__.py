"""These commands are for a GPU: one tests and measures everything, one searches better tiles, one writes the table of
attention backends that follows from a measurement."""
