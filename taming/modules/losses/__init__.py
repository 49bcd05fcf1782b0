"""Losses of the first stage."""

from taming.modules.losses.vqperceptual import DummyLoss

__all__ = ["DummyLoss"]
