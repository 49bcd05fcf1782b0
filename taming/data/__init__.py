"""Datasets: files in, items (dicts with float32 HWC images in [-1, 1]) out."""
