"""Processes that make clips, are watched, and are replaced when they die or hang."""
