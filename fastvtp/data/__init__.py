"""From lists and files to batches of clips and token ids."""
