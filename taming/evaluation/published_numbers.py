"""Protocols of published numbers, as far as they are published.

Sources: "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841) and the
overview of its published models; for scenes, "High-Resolution Complex Scene Synthesis with
Transformers" (arXiv 2105.06458). They say nothing of how the samples were decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from taming.config import did_you_mean
from taming.errors import UserError

RECONSTRUCTIONS = "reconstructions of all 50,000 ImageNet validation images, against the originals"
SAMPLED = "50,000 samples, against the training set"
SEGMENTATIONS = "samples for the segmentations of {0}'s validation set, against its images"
SCENES = "5 samples for every layout of Open Images, against its images"
SAMPLER = dict.fromkeys(("top_k", "top_p", "temperature", "accepted"), "not published")


@dataclass(frozen=True)
class Preset:
    """One published number and how it was made; None stands for what is not published."""

    name: str  # as `--preset` takes it
    model: str  # the published model's name, as scripts/download_models.py takes it
    what: str  # the two sets of images
    published: tuple[tuple[str, float], ...]  # metrics' names and the published numbers
    script: str = "evaluate_fid"  # the evaluation script that computes it
    samples: int | None = None  # number of images on the samples' side
    per_class: int | None = None  # samples of every class, for models of classes
    reference_split: str | None = "validation"  # or "train", of the reference's config


def _sampled(name: str, model: str, data: str, fid: float, per_class: int | None = None) -> Preset:
    entry = Preset(name, model, f"{SAMPLED} of {data}", (("fid", fid),), samples=50_000)
    return replace(entry, per_class=per_class, reference_split="train")


def _segmentation(name: str, model: str, data: str, fid: float) -> Preset:
    return Preset(name, model, SEGMENTATIONS.format(data), (("fid", fid),))


def _reconstructed(name: str, model: str, rfid: float) -> Preset:
    script = "evaluate_first_stage"
    return Preset(name, model, RECONSTRUCTIONS, (("rfid", rfid),), script, samples=50_000)


def _scenes(name: str, fid: float, scene_fid: float, isc: float) -> Preset:
    numbers = (("fid", fid), ("scene_fid", scene_fid), ("isc", isc))
    return Preset(name, name, SCENES, numbers, "evaluate_scenes", reference_split=None)


def _decoding(number: int, fid: float) -> Preset:
    data = f"ImageNet; the {number}. of five decodings"
    return _sampled(f"cin_{number}", "cin_transformer", data, fid, per_class=50)


PRESETS = (
    _reconstructed("rfid_vqgan_1024", "vqgan_imagenet_f16_1024", 7.94),
    _reconstructed("rfid_vqgan_16384", "vqgan_imagenet_f16_16384", 4.98),
    _reconstructed("rfid_vq_f8_n256", "vq_f8_n256", 1.49),
    _reconstructed("rfid_vq_f8", "vq_f8", 1.14),
    _reconstructed("rfid_gumbel_f8", "vqgan_gumbel_f8", 1.49),
    _reconstructed("rfid_dalle", "dalle_dvae", 32.01),
    _sampled("ffhq", "ffhq_transformer", "FFHQ", 9.6),
    _sampled("celebahq", "celebahq_transformer", "CelebA-HQ", 10.2),
    _segmentation("ade20k", "ade20k_transformer", "ADE20K", 35.5),
    _segmentation("coco_stuff", "coco_transformer", "COCO-Stuff", 20.4),
    *(_decoding(n, fid) for n, fid in enumerate((15.98, 15.78, 6.59, 5.88, 5.20), start=1)),
    _scenes("oi_scene_1b", 41.48, 14.60, 18.47),
    _scenes("oi_scene_125m", 43.07, 15.93, 17.23),
)


def preset(name: str) -> Preset:
    """The preset of that name; UserError if there is none."""
    names = [preset.name for preset in PRESETS]
    if name not in names:
        raise UserError(f"there is no preset '{name}'{did_you_mean(name, names)}")
    return PRESETS[names.index(name)]


def flags(entry: Preset) -> dict[str, object]:
    """The flags of scripts/evaluate_fid.py that a preset sets, as far as they are published.

    Raises UserError for a preset that another script computes.
    """
    if entry.script != "evaluate_fid":
        raise UserError(f"the preset {entry.name} is computed by scripts/{entry.script}.py")
    samples = entry.per_class or entry.samples
    known = {"num_samples": samples, "split": entry.reference_split}
    return {"metrics": "fid", **{name: value for name, value in known.items() if value is not None}}
