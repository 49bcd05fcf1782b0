"""Taming Transformers for High-Resolution Image Synthesis (arXiv 2012.09841)."""

__version__ = "1.0.0"
