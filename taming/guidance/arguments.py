"""Flags of what images are guided by, and of what they start from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from taming.command_line import flag, parse_numbers, parse_size
from taming.errors import UserError
from taming.guidance.clip import OpenClip, load_clip
from taming.guidance.encoders import ImageEncoder
from taming.guidance.networks import load_classifier_guide, load_features
from taming.guidance.objective import (
    NO_CLASSES,
    NO_TEXTS,
    Target,
    class_target,
    image_targets,
    read_texts,
    text_targets,
    weighted_file,
)
from taming.sampling.completion import HALVES
from taming.sampling.conditions import read_picture
from taming.shipped import script
from taming.user_files import name_and_file, with_home

RANDOM, PRIOR = "random", "prior"


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Which network judges the images; at most one."""

    clip: str | None = flag(
        None, "guide: a model of open_clip's as ViT-B-32, ViT-B-32:TAG, or its folder"
    )
    clip_weights: str | None = flag(
        None, "its file (default: where open_clip and the hub keep them)", metavar="FILE"
    )
    features: str | None = flag(
        None, "guide, for image prompts: lpips, lpips-alex, or a torchvision model as vgg16[:FILE]"
    )
    classifier: str | None = flag(
        None, f"guide, for classes: small:FILE of {script('report')}, or resnet50[:FILE]"
    )

    def __post_init__(self) -> None:
        guides = [n for n in ("clip", "features", "classifier") if vars(self)[n] is not None]
        if len(guides) > 1:
            raise UserError(f"--{guides[0]} and --{guides[1]} are two guides; give one of them")
        if self.clip_weights is not None and self.clip is None:
            raise UserError("--clip_weights are those of --clip, which is missing; add it")

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return any(name is not None for name in (self.clip, self.features, self.classifier))

    def load(self, device: torch.device) -> ImageEncoder:
        """The network."""
        if self.clip is not None:
            return load_clip(self.clip, self.clip_weights, device)
        if self.features is not None:
            return load_features(self.features, device)
        assert self.classifier is not None
        return load_classifier_guide(self.classifier, device)


@dataclass(frozen=True, kw_only=True)
class Prompts(Guide):
    """What the images are of, and who judges that."""

    prompt: tuple[str, ...] = flag(
        (), "TEXT or TEXT:WEIGHT, several times; below 0: away from it", repeated=True
    )
    image_prompt: tuple[str, ...] = flag((), "FILE or FILE:WEIGHT, likewise", repeated=True)
    classes: tuple[int, ...] | None = flag(
        None, "as 3,7: images of each of these, for --classifier", parse=parse_numbers
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.given:
            raise UserError(
                "say who guides: --clip for texts, --features for image prompts, or --classifier "
                "for classes"
            )
        if not (self.prompt or self.image_prompt or self.classes):
            raise UserError("say what to draw: --prompt, --image_prompt or --classes")
        # Before networks are loaded, whose weights may not be there.
        if read_texts(self.prompt) and self.clip is None:
            raise UserError(NO_TEXTS)
        if self.classes is not None and self.classifier is None:
            raise UserError(NO_CLASSES)
        for path, _ in self._images:
            read_picture(path)

    def files(self, encoder: ImageEncoder) -> dict[str, str | Path | None]:
        """The files that decide what is drawn, by their flags."""
        named = {"features": self.features or "", "classifier": self.classifier or ""}
        found: dict[str, str | Path | None] = {
            flag: name if Path(name).is_file() else name_and_file(name)[1] or None
            for flag, name in named.items()
        }
        found["clip"] = encoder.file if isinstance(encoder, OpenClip) else None
        return found | {f"image_prompt {n}": path for n, (path, _) in enumerate(self._images, 1)}

    @property
    def image_weights(self) -> tuple[float, ...]:
        """Of the image prompts."""
        return tuple(weight for _, weight in self._images)

    @property
    def _images(self) -> list[tuple[str, float]]:
        return [weighted_file(with_home(prompt)) for prompt in self.image_prompt]

    def targets(self, encoder: ImageEncoder) -> dict[int | None, list[Target]]:
        """What to draw, by the class; only None without `--classes`."""
        shared = text_targets(encoder, self.prompt) + image_targets(encoder, self.image_prompt)
        if self.classes is None:
            return {None: shared}
        return {label: [class_target(encoder, label), *shared] for label in self.classes}

    @property
    def name(self) -> str:
        """For a folder."""
        words = [*self.prompt, *(Path(p).stem for p in self.image_prompt)]
        usual = "prompts" if words else "classes"  # which are folders in it
        return re.sub(r"[^\w.-]+", "_", " ".join(words)).strip("_.")[:60] or usual


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What the images start from, and how large they are."""

    start: str = flag(RANDOM, f"{RANDOM} codes, or {PRIOR}: sampled by the run's transformer")
    init: str | None = flag(None, "start from this image", metavar="IMAGE")
    mask: str | None = flag(
        None,
        f"change a part of --init only: {', '.join(HALVES)}, a box x0,y0,x1,y1 in its pixels, or a "
        "file of its size that is white there",
    )
    paste: bool = flag(False, "with --mask, put the image's own pixels back around the part")
    size: tuple[int, int] | None = flag(
        None, "height,width in pixels (default: of training, or of --init)", parse=parse_size
    )
    full_size: bool = flag(False, "keep an --init larger than the images of training as it is")
    condition: int | None = flag(None, f"with --start {PRIOR}, the class that is sampled")

    def __post_init__(self) -> None:
        if self.start not in (RANDOM, PRIOR):
            raise UserError(f"--start takes {RANDOM} or {PRIOR}, not '{self.start}'")
        if self.start == PRIOR and self.init is not None:
            raise UserError(f"--init and --start {PRIOR} are two starts; give one of them")
        for name in ("mask", "paste", "full_size"):
            if vars(self)[name] and self.init is None:
                raise UserError(f"--{name} is about an image to start from; give --init")
        if self.paste and self.mask is None:
            raise UserError("--paste is about what --mask leaves; give it as well")
        if self.condition is not None and self.start != PRIOR:
            raise UserError(f"--condition is what --start {PRIOR} samples; add that")
