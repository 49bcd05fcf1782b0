"""Samples and reconstructions: tables 2 to 5 of arXiv 2012.09841v3 and what is beside them."""

from __future__ import annotations

from dataclasses import replace

from taming.evaluation.presets.base import (
    NOT_PUBLISHED,
    PAPER,
    README,
    SUPPLEMENT,
    Number,
    Parameter,
    Preset,
    with_source,
)

Settings = tuple[int | tuple[int, ...], float, float]  # k, p, acceptance
MIXED_K = (100, 200, 250, 300, 350, 400, 500, 600, 800, 973)
MIXED = f"{SUPPLEMENT}: each sample's k is one of these"
WHOLE_TRAINING = f"{SUPPLEMENT}: against the whole training split"
EVALUATOR = "inception-v3-compat"  # of torch-fidelity

REFERENCE = (
    Parameter("reference_resize", "pillow-antialias", SUPPLEMENT),
    Parameter("reference_crop", "center", f"{SUPPLEMENT}: the largest centered square"),
    Parameter("reference_size", 256, SUPPLEMENT),
    Parameter("extractor", EVALUATOR, f"{SUPPLEMENT}: torch-fidelity; its version {NOT_PUBLISHED}"),
)
SAMPLED = (
    Parameter("metrics", "fid,isc", "FID as published; Inception Score beside it"),
    Parameter("num_samples", 50_000, SUPPLEMENT),
    Parameter("split", "train", WHOLE_TRAINING),
    *REFERENCE,
    Parameter("temperature", 1.0, SUPPLEMENT),
    Parameter("top_p", None, NOT_PUBLISHED),
    Parameter("seed", None, NOT_PUBLISHED),
)
OF_LAYOUTS = with_source(
    SAMPLED,
    num_samples=(None, f"{SUPPLEMENT}: one sample for each validation layout, so all of them"),
    split=("validation", "table 2: FID on the validation split"),
    top_k=(100, SUPPLEMENT),
)
BY_CLASS = (
    *with_source(
        SAMPLED,
        metrics=("fid,isc", "table 4"),
        num_samples=(50, f"{SUPPLEMENT}: 50,000 samples, of 1,000 classes"),
    ),
    Parameter("training_steps", 2_400_000, f"{PAPER}: of batches of 16, accumulated over 8"),
    Parameter("training_days", 45.8, f"{PAPER}: on one A100"),
)
REJECTED = (
    Parameter(
        "classifier",
        "resnet101@IMAGENET1K_V1",
        f"{SUPPLEMENT}: a ResNet-101; its weights are {NOT_PUBLISHED}: here torchvision's of the "
        "paper's time",
    ),
    Parameter(
        "reject_pool",
        "class",
        f"{SUPPLEMENT}: 'the best m out of n'; of which candidates is {NOT_PUBLISHED}: here all of "
        "a class, and 'group' is weaker",
    ),
)
RECONSTRUCTED = (
    Parameter("split", "validation", "table 5"),
    *REFERENCE,
    Parameter(
        "adversarial_start",
        None,
        f"{PAPER}: the weight is 0 for at least one epoch; the step is {NOT_PUBLISHED}",
    ),
)


def _decoding(
    row: int, name: str, settings: Settings, fid: float, isc: tuple[float, float]
) -> Preset:
    """A row of table 4."""
    (k, p, acceptance), source = settings, f"table 4, row {row}"
    what = "mixed k" if k is MIXED_K else f"k = {k}"
    what += f", p = {p:g}" if p < 1 else ""
    what += f", acceptance {acceptance:g}" if acceptance < 1 else ""
    parameters = with_source(
        BY_CLASS,
        top_p=(p, source),
        reject_ratio=(acceptance, source),
        top_k=(k, MIXED if k is MIXED_K else source),
    )
    return Preset(
        name,
        f"50,000 samples of ImageNet, {what}, against the training images",
        (Number("fid", fid, source), Number("isc.mean", isc[0], source, isc[1])),
        parameters + (REJECTED if acceptance < 1 else ()),
        script="evaluate_fid",
        model="cin_transformer",
        config="cin_transformer",
    )


# In the order of the table: k, p and acceptance; FID; Inception Score and its deviation.
_DECODINGS: tuple[tuple[str, Settings, float, tuple[float, float]], ...] = (
    ("cin_mixed_k", (MIXED_K, 1.0, 1.0), 17.04, (70.6, 1.8)),
    ("cin_k973", (973, 1.0, 1.0), 29.20, (47.3, 1.3)),
    ("cin_k250", (250, 1.0, 1.0), 15.98, (78.6, 1.1)),
    ("cin_k973_p088", (973, 0.88, 1.0), 15.78, (74.3, 1.8)),
    ("cin_k600_a005", (600, 1.0, 0.05), 5.20, (280.3, 5.5)),
    ("cin_mixed_k_a05", (MIXED_K, 1.0, 0.5), 10.26, (125.5, 2.4)),
    ("cin_mixed_k_a025", (MIXED_K, 1.0, 0.25), 7.35, (188.6, 3.3)),
    ("cin_mixed_k_a005", (MIXED_K, 1.0, 0.05), 5.88, (304.8, 3.6)),
    ("cin_mixed_k_a0005", (MIXED_K, 1.0, 0.005), 6.59, (402.7, 2.9)),
)
TABLE_4 = (
    *(_decoding(row, *entry) for row, entry in enumerate(_DECODINGS, start=1)),
    Preset(
        "imagenet_validation",
        "validation images of ImageNet themselves, against the training images",
        (
            Number("fid", 1.62, "table 4, row 10"),
            Number("isc.mean", 234.0, "table 4, row 10", 3.9),
        ),
        (
            Parameter("metrics", "fid,isc", "table 4, row 10"),
            Parameter("samples_split", "validation", "table 4, row 10"),
            Parameter("split", "train", WHOLE_TRAINING),
            *REFERENCE,
        ),
        script="evaluate_fid",
        config="imagenet_vqgan",
    ),
)

TABLE_2 = (
    Preset(
        "coco_stuff",
        "samples for the segmentations of COCO-Stuff's validation images, against these",
        (Number("fid", 22.4, "table 2"), Number("fid", 20.4, README)),
        OF_LAYOUTS,
        script="evaluate_fid",
        model="coco_transformer",
        config="coco_transformer",
        conditions=True,
    ),
    Preset(
        "ade20k",
        "samples for the segmentations of ADE20K's validation images, against these",
        (Number("fid", 35.5, "table 2"),),
        OF_LAYOUTS,
        script="evaluate_fid",
        model="ade20k_transformer",
        config="ade20k_transformer",
        conditions=True,
    ),
)
TABLE_3 = (
    Preset(
        "celebahq",
        "50,000 samples of CelebA-HQ, against the training images",
        (Number("fid", 10.2, "table 3"),),
        with_source(SAMPLED, top_k=(400, f"{SUPPLEMENT}: the best of 100, 200, ..., 500")),
        script="evaluate_fid",
        model="celebahq_transformer",
        config="celebahq_transformer",
    ),
    Preset(
        "ffhq",
        "50,000 samples of FFHQ, against the training images",
        (Number("fid", 9.6, "table 3"),),
        with_source(SAMPLED, top_k=(300, SUPPLEMENT)),
        script="evaluate_fid",
        model="ffhq_transformer",
        config="ffhq_transformer",
    ),
)


def _rfid(
    name: str, what: str, model: str | None, validation: float, training: float, note: str = ""
) -> tuple[Preset, Preset]:
    """A row of table 5: against the validation images, and against the training images."""
    what = f"reconstructions of ImageNet's validation images, {what}"
    against_itself = Preset(
        f"rfid_{name}",
        f"{what}, against these",
        (Number("rfid", validation, "table 5, validation"),),
        RECONSTRUCTED,
        script="evaluate_first_stage",
        model=model,
        config="imagenet_vqgan",
        note=note,
    )
    against_training = Preset(
        f"rfid_{name}_train",
        f"{what}, against the training images",
        (Number("fid", training, "table 5, training"),),
        (
            Parameter("metrics", "fid", "table 5"),
            Parameter("reconstruct", "validation", "table 5"),
            *with_source(RECONSTRUCTED, split=("train", "table 5, training")),
        ),
        script="evaluate_fid",
        model=model,
        config="imagenet_vqgan",
        note=note,
    )
    return against_itself, against_training


NO_TWO_LEVELS = "no checkpoint of it is published; train one, and name its run"
TABLE_5 = (
    *_rfid(
        "vqgan_1024", "f16, 1,024 codes", "vqgan_imagenet_f16_1024", validation=7.94, training=10.54
    ),
    *_rfid(
        "vqgan_16384",
        "f16, 16,384 codes",
        "vqgan_imagenet_f16_16384",
        validation=4.98,
        training=7.41,
    ),
    *_rfid(
        "gumbel_f8", "f8, 8,192 codes, Gumbel", "vqgan_gumbel_f8", validation=1.49, training=3.24
    ),
    *_rfid(
        "two_levels",
        "two levels, 64 x 64 and 32 x 32, 512 codes",
        None,
        validation=1.45,
        training=2.78,
        note=NO_TWO_LEVELS,
    ),
    *_rfid(
        "dalle", "DALL-E's dVAE, f8, 8,192 codes", "dalle_dvae", validation=32.01, training=33.88
    ),
)


def _readme_rfid(name: str, codes: str, model: str, rfid: float) -> Preset:
    what = f"reconstructions of ImageNet's validation images, f8, {codes} codes, against these"
    source = f"{README} only"
    parameters = [Parameter("split", "validation", source)]
    parameters += [replace(one, source=f"as for table 5 ({one.source})") for one in REFERENCE]
    numbers = (Number("rfid", rfid, source),)
    return Preset(
        f"rfid_{name}",
        what,
        numbers,
        tuple(parameters),
        script="evaluate_first_stage",
        model=model,
        config="imagenet_vqgan",
    )


LATENT_DIFFUSION = (
    _readme_rfid("vq_f8_n256", "256", "vq_f8_n256", 1.49),
    _readme_rfid("vq_f8", "16,384", "vq_f8", 1.14),
)
