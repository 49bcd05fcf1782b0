"""Images from a trained transformer: one engine for scripts, demo, logging and evaluation."""

from taming.sampling.engine import Request, Sample, sample_images
from taming.sampling.requests import labels_for, requests_for
from taming.sampling.settings import SampleSettings, uniforms
from taming.sampling.sliding_window import sample_sliding_window
from taming.sampling.token_sampler import Progress

__all__ = [
    "Progress",
    "Request",
    "Sample",
    "SampleSettings",
    "labels_for",
    "requests_for",
    "sample_images",
    "sample_sliding_window",
    "uniforms",
]
