"""The command line: each command is thin and calls a function elsewhere."""
