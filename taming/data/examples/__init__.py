"""Small, correct datasets in the formats of all datasets, rendered instead of downloaded."""

from taming.data.examples.datasets import write_all
from taming.data.examples.landscape_data import write_landscapes

__all__ = ["write_all", "write_landscapes"]
