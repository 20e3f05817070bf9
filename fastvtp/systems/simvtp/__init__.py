"""SimVTP (arXiv:2212.03490): masked video and text in one encoder."""
