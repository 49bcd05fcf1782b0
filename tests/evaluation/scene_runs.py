"""A run that draws scenes, and layouts for it, on rendered example data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.examples.annotated import write_coco
from taming.data.examples.writer import ExampleWriter
from taming.data.seeding import SeededDataset
from taming.evaluation.sources.scenes import Layouts
from tests.data.scenes import OPTIONS, scene_model
from tests.sampling.tiny import tiny_run, transformer_config

SCENES = scene_model(block_size=64)
# Rendered scenes have up to 3 things, sky and grass.
SMALL = {"no_tokens": 64, "target_image_size": 8, "max_objects_per_image": 8}


def options(root: Path, **changes: Any) -> dict[str, Any]:
    """What the data set is made with."""
    path = {"data_path": str(root / "data" / "coco_annotations"), "split": "validation"}
    return OPTIONS | SMALL | path | changes


def write_scenes(root: Path, count: int = 6) -> Path:
    """Example data with `count` scenes of validation."""
    write_coco(ExampleWriter(root, train=2, validation=count))
    return root


def layouts(root: Path, count: int | None = None, seed: int = 0, **changes: Any) -> Layouts:
    """The layouts of data that `write_scenes` wrote."""
    data = AnnotatedObjectsCoco(**options(root, **changes))
    return Layouts(SeededDataset(data, seed), count, "objects_bbox")


def scene_run(root: Path) -> Path:
    """A run with the data's section in its config."""
    run = tiny_run(root / "run", transformer_config(**SCENES))
    target = "taming.data.annotated_objects_coco.AnnotatedObjectsCoco"
    data = {"params": {"validation": {"target": target, "params": options(root)}}}
    OmegaConf.save(OmegaConf.create({"data": data}), run / "configs" / "0-project.yaml")
    return run
