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
    Value,
    with_source,
)

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
    Parameter("classifier", "resnet101", SUPPLEMENT),
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
    row: int, name: str, what: str, fid: float, isc: tuple[float, float], **own: Value
) -> Preset:
    """A row of table 4; `own` are its settings."""
    source = f"table 4, row {row}"
    pairs = {
        key: (value, MIXED if value is MIXED_K else source)
        for key, value in {"top_p": 1.0, "reject_ratio": 1.0, **own}.items()
    }
    parameters = with_source(BY_CLASS, **pairs)
    if "reject_ratio" in own:
        parameters += REJECTED
    numbers = (Number("fid", fid, source), Number("isc.mean", isc[0], source, isc[1]))
    what = f"50,000 samples of ImageNet, {what}, against the training images"
    return Preset(
        name,
        what,
        numbers,
        parameters,
        script="evaluate_fid",
        model="cin_transformer",
        config="cin_transformer",
    )


TABLE_4 = (
    _decoding(1, "cin_mixed_k", "mixed k", fid=17.04, isc=(70.6, 1.8), top_k=MIXED_K),
    _decoding(2, "cin_k973", "k = 973", fid=29.20, isc=(47.3, 1.3), top_k=973),
    _decoding(3, "cin_k250", "k = 250", fid=15.98, isc=(78.6, 1.1), top_k=250),
    _decoding(
        4, "cin_k973_p088", "k = 973, p = 0.88", fid=15.78, isc=(74.3, 1.8), top_k=973, top_p=0.88
    ),
    _decoding(
        5,
        "cin_k600_a005",
        "k = 600, acceptance 0.05",
        fid=5.20,
        isc=(280.3, 5.5),
        top_k=600,
        reject_ratio=0.05,
    ),
    _decoding(
        6,
        "cin_mixed_k_a05",
        "mixed k, acceptance 0.5",
        fid=10.26,
        isc=(125.5, 2.4),
        top_k=MIXED_K,
        reject_ratio=0.5,
    ),
    _decoding(
        7,
        "cin_mixed_k_a025",
        "mixed k, acceptance 0.25",
        fid=7.35,
        isc=(188.6, 3.3),
        top_k=MIXED_K,
        reject_ratio=0.25,
    ),
    _decoding(
        8,
        "cin_mixed_k_a005",
        "mixed k, acceptance 0.05",
        fid=5.88,
        isc=(304.8, 3.6),
        top_k=MIXED_K,
        reject_ratio=0.05,
    ),
    _decoding(
        9,
        "cin_mixed_k_a0005",
        "mixed k, acceptance 0.005",
        fid=6.59,
        isc=(402.7, 2.9),
        top_k=MIXED_K,
        reject_ratio=0.005,
    ),
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
