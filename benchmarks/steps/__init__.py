"""Each file measures what a training run does over and over: the whole step of some models, or the loading of clips."""
