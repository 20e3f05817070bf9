"""The `fastvtp` command: thin, every command calls a function elsewhere."""
