"""Images from a trained transformer: one engine for scripts, demo, logging and evaluation.

model, run, step = load_transformer("logs/<run>")
requests = requests_for_labels(model, labels_for(model, [3, 7]), num_samples=4)
for sample in sample_images(model, requests, SampleSettings(top_k=100)):
    sample.image  # (3, H, W) in [-1, 1]
"""

from taming.sampling.engine import Progress, Sample, sample_images
from taming.sampling.load import load_transformer
from taming.sampling.requests import (
    Request,
    labels_for,
    request_for_condition,
    request_for_inputs,
    requests_for_labels,
    requests_for_scene,
)
from taming.sampling.settings import SampleSettings, uniforms
from taming.sampling.sliding_window import sample_sliding_window

__all__ = [
    "Progress",
    "Request",
    "Sample",
    "SampleSettings",
    "labels_for",
    "load_transformer",
    "request_for_condition",
    "request_for_inputs",
    "requests_for_labels",
    "requests_for_scene",
    "sample_images",
    "sample_sliding_window",
    "uniforms",
]
