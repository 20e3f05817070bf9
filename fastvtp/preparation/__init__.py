"""Preparation: lists, folders and tars of videos become training-ready shards."""
