"""VideoMAE (arXiv:2203.12602): masked video, and classifiers that start from it."""
