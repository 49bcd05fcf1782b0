"""Images with a label per pixel, listed relative to two folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from typing_extensions import Unpack

from taming.config_values import AnyPath, Count
from taming.data.columns import Column
from taming.data.condition_maps import Labels
from taming.data.files.list_files import Listed, read_names
from taming.data.image_with_maps import ImagesWithMaps, MapFiles, png_paths
from taming.data.options import Exif, FileOptions, ImageOptions, OnError


class Segmented(ImagesWithMaps):
    """Listed images, and the PNG of the same name below `segmentation_root`.

    Items: `image` float32 (H, W, 3) in [-1, 1], `segmentation` float32 one-hot (H, W, n_labels),
    `relative_file_path_`, `file_path_`, `segmentation_path_`, and the `extra` columns.
    """

    def __init__(
        self,
        listed: Listed,
        segmentation_root: str | Path,
        kind: Labels,
        options: ImageOptions,
        extra: Mapping[str, Column] | None = None,
    ) -> None:
        segmentations = png_paths(listed.names, segmentation_root)
        labels: dict[str, Column] = {
            "relative_file_path_": listed.names,
            "segmentation_path_": segmentations,
        }
        maps = {"segmentation": MapFiles(segmentations, kind)}
        self.n_labels = kind.n_labels
        super().__init__(listed.paths, maps, options, labels | dict(extra or {}))


class SegmentationBase(Segmented):
    """Images of a list file with 8-bit label PNGs; the items are those of `Segmented`.

    Args:
        data_csv: the list file, one image path per line relative to `data_root`.
        segmentation_root: where the PNGs are, named as the images.
        n_labels: labels go from 0 to n_labels - 1.
        shift_segmentation: add 1 to the labels, so that 255, unlabeled, becomes 0.
        (the others: see `ImageOptions`; labels take the nearest value)
    """

    def __init__(
        self,
        data_csv: AnyPath,
        data_root: AnyPath,
        segmentation_root: AnyPath,
        size: int | None = None,
        random_crop: bool = False,
        interpolation: str = "bicubic",
        n_labels: Count = 182,
        shift_segmentation: bool = False,
        crop_size: int | None = None,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "apply",
        **files: Unpack[FileOptions],
    ) -> None:
        name = type(self).__name__
        options = ImageOptions(
            size,
            random_crop,
            random_flip,
            crop_size,
            interpolation,
            on_error=on_error,
            exif=exif,
            **files,
        )
        options = replace(options, source=f"{name}'s list {data_csv}")
        listed = read_names(data_csv, data_root, name, on_error)
        super().__init__(listed, segmentation_root, Labels(n_labels, shift_segmentation), options)


class SegmentationExamples(Segmented):
    """A few images in `data/<name>_{examples.txt,images/,segmentations/}`."""

    name: ClassVar[str]
    labels_and_shift: ClassVar[tuple[int, bool]]

    def __init__(
        self,
        size: int | None = 256,
        random_crop: bool = False,
        interpolation: str = "bicubic",
        crop_size: int | None = None,
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        root = f"data/{self.name}"
        listed = read_names(f"{root}_examples.txt", f"{root}_images", type(self).__name__)
        source = f"{type(self).__name__}'s list {root}_examples.txt"
        options = ImageOptions(
            size,
            random_crop,
            crop_size=crop_size,
            interpolation=interpolation,
            exif=exif,
            source=source,
            **files,
        )
        super().__init__(listed, f"{root}_segmentations", Labels(*self.labels_and_shift), options)
