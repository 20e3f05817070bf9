"""Formats of lists of videos, recognised by what they hold; docs/lists.md describes each."""
