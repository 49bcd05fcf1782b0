"""Losses of the first stage."""

from taming.modules.losses.base import DummyLoss

__all__ = ["DummyLoss"]
