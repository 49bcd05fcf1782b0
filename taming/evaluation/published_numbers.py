"""Protocols of published numbers, as far as they are published.

Sources: "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841) and the
overview of its published models; for scenes, "High-Resolution Complex Scene Synthesis with
Transformers" (arXiv 2105.06458). What these do not say is None here, and "not published" in texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from taming.config import did_you_mean
from taming.errors import UserError

RECONSTRUCTIONS = "reconstructions of all 50,000 ImageNet validation images, against the originals"
SAMPLED = "50,000 samples, against the training set"
NOT_PUBLISHED = "not published"


@dataclass(frozen=True)
class Preset:
    """One published number and how it was made.

    Attributes:
        name: as `--preset` takes it.
        model: the published model's name, as scripts/download_models.py takes it.
        what: the two sets of images.
        published: metrics' names and the published numbers.
        script: the evaluation script that computes it.
        metrics: for scripts/evaluate_fid.py.
        samples: number of images on the samples' side, None if that is not published.
        reference: what the reference set is.
        reference_split: "train" or "validation" of the reference's config; None: not published.
        per_class: samples of every class, for models of classes.
        per_condition: samples of every layout or segmentation.
        top_k, top_p, temperature, accepted: of the sampler (`accepted`: the share that a classifier
            keeps); None: not published, and the sampler's defaults are used.
    """

    name: str
    model: str
    what: str
    published: tuple[tuple[str, float], ...]
    script: str = "evaluate_fid"
    metrics: tuple[str, ...] = ("fid",)
    samples: int | None = None
    reference: str = ""
    reference_split: str | None = "train"
    per_class: int | None = None
    per_condition: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    accepted: float | None = None

    def settings(self) -> dict[str, int | float | str]:
        """The sampler's settings, "not published" for the others."""
        names = ("top_k", "top_p", "temperature", "accepted")
        values = asdict(self)
        return {n: NOT_PUBLISHED if values[n] is None else values[n] for n in names}


def _sampled(name: str, model: str, data: str, fid: float) -> Preset:
    return Preset(
        name,
        model,
        f"{SAMPLED} of {data}",
        (("fid", fid),),
        samples=50_000,
        reference=f"the training images of {data}",
    )


def _decoding(number: int, fid: float) -> Preset:
    return Preset(
        f"cin_{number}",
        "cin_transformer",
        f"{SAMPLED} of ImageNet; the {number}. of five decodings",
        (("fid", fid),),
        samples=50_000,
        per_class=50,
        reference="the training images of ImageNet",
    )


def _segmentation(name: str, model: str, data: str, fid: float) -> Preset:
    return Preset(
        name,
        model,
        f"samples for the segmentations of {data}'s validation set, against its images",
        (("fid", fid),),
        reference=f"the validation images of {data}",
        reference_split="validation",
    )


def _reconstructed(name: str, model: str, rfid: float) -> Preset:
    return Preset(
        name,
        model,
        RECONSTRUCTIONS,
        (("rfid", rfid),),
        script="evaluate_first_stage",
        samples=50_000,
        reference="all 50,000 validation images of ImageNet",
        reference_split="validation",
    )


def _scenes(name: str, fid: float, scene_fid: float, isc: float) -> Preset:
    return Preset(
        name,
        name,
        "5 samples for every layout of Open Images, against its images",
        (("fid", fid), ("scene_fid", scene_fid), ("isc", isc)),
        script="evaluate_scenes",
        metrics=("fid", "isc"),
        reference="the images of the layouts",
        reference_split=None,
        per_condition=5,
    )


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

    Raises:
        UserError: for a preset that another script computes.
    """
    if entry.script != "evaluate_fid":
        raise UserError(f"the preset {entry.name} is computed by scripts/{entry.script}.py")
    sampler = {
        "top_k": entry.top_k,
        "top_p": entry.top_p,
        "temperature": entry.temperature,
        "reject_ratio": entry.accepted,
        "num_samples": entry.per_class or entry.samples,
        "split": entry.reference_split,
    }
    known = {name: value for name, value in sampler.items() if value is not None}
    return {"metrics": ",".join(entry.metrics), **known}


def rows() -> Iterator[dict[str, str]]:
    """All presets as the rows of a table."""
    for entry in PRESETS:
        numbers = ", ".join(f"{metric} {number:g}" for metric, number in entry.published)
        yield {"preset": entry.name, "model": entry.model, "what": entry.what, "published": numbers}
