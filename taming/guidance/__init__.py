"""Images that a text, an image or a class guides: codes of a first stage are optimized for them.

from taming.guidance import GuideSettings, Objective, guide, load_clip, text_targets

encoder = load_clip("ViT-B-32", "weights.safetensors")
objective = Objective(encoder, text_targets(encoder, ["a fox:1.0", "snow:0.5"]))
guided = guide(stage, objective, GuideSettings(steps=200))  # guided.image [C, H, W]
"""

from taming.guidance.clip import OpenClip, load_clip
from taming.guidance.code_grids import CodeGrids
from taming.guidance.cutouts import CutSettings
from taming.guidance.encoders import ClassEncoder, ImageEncoder, TextEncoder
from taming.guidance.loop import Guided, GuideSettings, GuideStep, guide
from taming.guidance.networks import load_classifier_guide, load_features
from taming.guidance.objective import (
    Objective,
    Target,
    class_target,
    image_targets,
    text_targets,
)
from taming.guidance.start import Start, image_start, random_start

__all__ = [
    "ClassEncoder",
    "CodeGrids",
    "CutSettings",
    "GuideSettings",
    "GuideStep",
    "Guided",
    "ImageEncoder",
    "Objective",
    "OpenClip",
    "Start",
    "Target",
    "TextEncoder",
    "class_target",
    "guide",
    "image_start",
    "image_targets",
    "load_classifier_guide",
    "load_clip",
    "load_features",
    "random_start",
    "text_targets",
]
