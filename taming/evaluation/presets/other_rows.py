"""Likelihoods, costs and scenes, and numbers that others measured or published."""

from __future__ import annotations

from taming.evaluation.presets.base import (
    NOT_PUBLISHED,
    PAPER,
    README,
    SCENES_PAPER,
    Number,
    Parameter,
    Preset,
)
from taming.evaluation.presets.image_rows import EVALUATOR

OTHERS = "others"
SNAIL = "PixelSNAIL, not a model here,"


def _likelihood(
    name: str,
    data: str,
    parameters: str,
    numbers: tuple[float, float, float],
    model: str | None,
    config: str | None,
) -> Preset:
    """A row of table 1: the transformer's, then PixelSNAIL's at equal steps and in equal time."""
    own, steps, time = numbers
    note = "whether the published checkpoint is the one of table 1 is not published"
    return Preset(
        f"nll_{name}",
        f"codes of {data}, transformer of {parameters} parameters",
        (
            Number("nats_per_token", own, "table 1"),
            Number("nats_per_token", steps, "table 1", of=f"{SNAIL} at equal steps"),
            Number("nats_per_token", time, "table 1", of=f"{SNAIL} in equal time"),
        ),
        (
            Parameter("parameters", parameters, "table 1"),
            Parameter("unit", "nats per token", f"taken to be; {NOT_PUBLISHED}"),
            Parameter("split", None, NOT_PUBLISHED),
            Parameter("num_images", None, NOT_PUBLISHED),
        ),
        script="evaluate_transformer",
        model=model,
        config=config,
        note=note if model else "no checkpoint of it is published; train one, and name its run",
    )


TABLE_1 = (
    _likelihood("rin", "RIN", "85 M", numbers=(4.78, 4.84, 4.96), model=None, config=None),
    _likelihood(
        "lsun_ct",
        "LSUN churches and towers",
        "310 M",
        numbers=(4.63, 4.69, 4.89),
        model=None,
        config=None,
    ),
    _likelihood(
        "in", "ImageNet", "310 M", numbers=(4.78, 4.83, 4.96), model=None, config="cin_transformer"
    ),
    _likelihood(
        "drin",
        "D-RIN",
        "180 M",
        numbers=(4.70, 4.78, 4.88),
        model="drin_transformer",
        config="drin_transformer",
    ),
    _likelihood(
        "sflckr",
        "S-FLCKR",
        "310 M",
        numbers=(4.49, 4.57, 4.64),
        model="sflckr_transformer",
        config="sflckr_transformer",
    ),
)

COSTS = (
    Preset(
        "cifar10_f2",
        "CIFAR-10 at f2 against a transformer on pixels",
        (
            Number("fid, percent lower", 18.63, "section 4.3"),
            Number("sampling, times faster", 14.08, "section 4.3"),
        ),
        (
            Parameter("dataset", "CIFAR-10", "section 4.3"),
            Parameter("downsampling_factor", 2, "section 4.3"),
            Parameter("top_k", None, NOT_PUBLISHED),
            Parameter("num_samples", None, NOT_PUBLISHED),
        ),
        script=None,
        note="a comparison of two models of which none is published; train both, and evaluate each",
    ),
    Preset(
        "seconds_f1",
        "a sample at f1, without a first stage",
        (Number("seconds per sample", 7258, "figure 7"),),
        (
            Parameter("downsampling_factor", 1, "figure 7"),
            Parameter("device", "Titan X", "figure 7"),
        ),
        script=None,
        note="the time is that of its hardware; compare sampling costs on your own",
    ),
)

SCENE_SIZE = "the data's limits of objects and the split are " + NOT_PUBLISHED


def _scenes(
    name: str,
    what: str,
    numbers: tuple[tuple[str, float, float], ...],
    training: tuple[Parameter, ...],
) -> Preset:
    samples = "as for COCO in this line of work; of Open Images " + NOT_PUBLISHED
    return Preset(
        name,
        f"samples for layouts of Open Images, {what}, against its images",
        tuple(Number(metric, value, README, spread) for metric, value, spread in numbers),
        (
            Parameter("samples_per_layout", 5, samples),
            Parameter("split", None, NOT_PUBLISHED),
            Parameter("min_object_side", None, NOT_PUBLISHED),
            Parameter("spread", None, "what +- is over is " + NOT_PUBLISHED),
            Parameter("top_k", None, NOT_PUBLISHED),
            *training,
        ),
        script="evaluate_scenes",
        model=name,
        config="open_images_scene_images_transformer",
        note=SCENE_SIZE,
    )


SCENES = (
    _scenes(
        "oi_scene_1b",
        "1 B parameters",
        (("fid", 41.48, 0.21), ("scene_fid", 14.60, 0.15), ("isc.mean", 18.47, 0.27)),
        (Parameter("parameters", "1 B", README),),
    ),
    _scenes(
        "oi_scene_125m",
        "125 M parameters, distilled",
        (("fid", 43.07, 0.40), ("scene_fid", 15.93, 0.19), ("isc.mean", 17.23, 0.11)),
        (
            Parameter("parameters", "125 M", README),
            Parameter("distillation", "10 % soft, 90 % hard loss", README),
        ),
    ),
    Preset(
        "coco_scene",
        "samples for layouts of COCO, against its images",
        (),
        (
            Parameter("samples_per_layout", 5, f"this line of work ({SCENES_PAPER})"),
            Parameter("num_layouts", 3097, f"this line of work ({SCENES_PAPER})"),
            Parameter("split", "validation", f"this line of work ({SCENES_PAPER})"),
        ),
        script="evaluate_scenes",
        model="coco_scene_60",
        config="coco_scene_images_transformer",
        note="the protocol is known, and no number of it was found",
    ),
)


def _measured_again(name: str, what: str, model: str, rfid: float) -> Preset:
    how = "other evaluators and resizes than the paper's; which is not known here"
    return Preset(
        f"others_{name}",
        f"reconstructions of ImageNet's validation images, {what}, by another evaluator",
        (Number("rfid", rfid, "later papers", by=OTHERS),),
        (
            Parameter("split", "validation", "later papers"),
            Parameter("evaluator", None, f"{NOT_PUBLISHED} in what was found: {how}"),
        ),
        script="evaluate_first_stage",
        model=model,
        config="imagenet_vqgan",
        note=f"the paper's own evaluation gives another number, see rfid_{name}",
    )


def _benchmark(
    name: str, what: str, config: str, fid: float | None, known: tuple[Parameter, ...]
) -> Preset:
    """A number of a benchmark's page: what is known of how it was made is in `known`."""
    source = "page of the benchmark"
    numbers = () if fid is None else (Number("fid", fid, source, by=OTHERS),)
    return Preset(
        name,
        what,
        numbers,
        (
            *known,
            Parameter("extractor", None, f"{NOT_PUBLISHED}; here {EVALUATOR}"),
            Parameter("reference_resize", None, NOT_PUBLISHED),
            Parameter("top_k", None, NOT_PUBLISHED),
            Parameter("top_p", None, NOT_PUBLISHED),
            Parameter("temperature", None, NOT_PUBLISHED),
        ),
        script="evaluate_fid",
        model=None,
        config=config,
        note="no checkpoint of it is published; train one with the config, and name its run",
    )


BY_OTHERS = (
    _measured_again("vqgan_16384", "f16, 16,384 codes", "vqgan_imagenet_f16_16384", 7.53),
    _measured_again("vqgan_1024", "f16, 1,024 codes", "vqgan_imagenet_f16_1024", 7.96),
    _benchmark(
        "imagenet512",
        "samples of ImageNet at 512 x 512, against its images",
        "cin512_transformer",
        26.52,
        (
            Parameter("num_samples", 50, "FID-50k: 50,000 samples, of 1,000 classes"),
            # Of a model that was trained on crops, samples are smaller without it.
            Parameter("size", (512, 512), "the benchmark's: ImageNet 512 x 512"),
            Parameter("split", None, NOT_PUBLISHED),
        ),
    ),
    _benchmark(
        "lsun_bedrooms",
        "unconditional samples of LSUN bedrooms, against its images",
        "lsun_transformer",
        6.35,
        (
            Parameter("num_samples", None, NOT_PUBLISHED),
            Parameter("split", None, NOT_PUBLISHED),
        ),
    ),
)
PICTURED = (
    Preset(
        "lsun_churches_towers",
        "unconditional samples of LSUN churches and towers",
        (),
        (Parameter("dataset", "LSUN churches and towers", f"{PAPER}, table 1 and pictures"),),
        script="evaluate_fid",
        model=None,
        config="lsun_transformer",
        note="samples are shown, and no FID of them is published; see nll_lsun_ct",
    ),
    Preset(
        "sflckr",
        "landscapes of S-FLCKR for segmentations, at several sizes",
        (),
        (Parameter("dataset", "S-FLCKR", f"{PAPER}, table 1 and pictures"),),
        script="evaluate_fid",
        model="sflckr_transformer",
        config="sflckr_transformer",
        conditions=True,
        note="samples are shown, and no FID of them is published; see nll_sflckr",
    ),
)
