"""Small, correct datasets in the formats of all datasets, rendered instead of downloaded."""

from taming.data.examples.datasets import write_all

__all__ = ["write_all"]
