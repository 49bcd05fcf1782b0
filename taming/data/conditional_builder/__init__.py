"""Scenes as tokens: what a transformer is conditioned on (arXiv 2105.06458, section 3.2)."""
