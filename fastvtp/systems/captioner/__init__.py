"""Captions and answers from frozen video features by a frozen language model (arXiv:2402.13217, appendix G)."""
