"""VideoPrism (arXiv:2402.13217): a factorised video encoder, its video-text model, and both stages of training."""
