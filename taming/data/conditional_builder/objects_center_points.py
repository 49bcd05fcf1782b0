"""Each object as (class, center)."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from taming.data.draws import shuffled
from taming.data.helper_types import WHOLE, Annotation, BoundingBox, Point, clip, mirrored, touches
from taming.errors import UserError
from taming.fonts import font_for
from taming.pictures import to_values

GROUP, OCCLUDED, DEPICTION, INSIDE = 1, 2, 4, 8  # multiples of the number of classes
Objects = list[tuple[int, Any]]


class Canvas:
    """A white picture of (width, height) pixels; places on it are given as shares of its size."""

    def __init__(self, size: tuple[int, int], line_width: int, font_size: int | None) -> None:
        self._image = Image.new("RGB", size, "white")
        self._draw = ImageDraw.Draw(self._image)
        self._width = line_width
        self._font_size = font_size or max(8, min(size) // 20)

    @staticmethod
    def color(number: int) -> str:
        """A dark color of its own for each small number: hues a golden angle apart."""
        red, green, blue = colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.9, 0.75)
        return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"

    def _pixels(self, x: float, y: float) -> tuple[float, float]:
        width, height = self._image.size
        return x * (width - 1), y * (height - 1)

    def box(self, box: BoundingBox, label: str, color: str) -> None:
        """Draw the outline of a box, its label inside at the upper left."""
        first, last = self._pixels(*box[:2]), self._pixels(box[0] + box[2], box[1] + box[3])
        self._draw.rectangle((*first, *last), outline=color, width=self._width)
        self._text((first[0] + self._width + 1, first[1] + self._width), label, color)

    def point(self, point: Point, label: str, color: str) -> None:
        """Draw a dot, its label below."""
        x, y = self._pixels(*point)
        self._draw.circle((x, y), self._width + 1, fill=color)
        self._text((x + self._width, y + self._width), label, color)

    def _text(self, place: tuple[float, float], label: str, color: str) -> None:
        """Write at `place`, or as much nearer to the upper left as the whole text needs."""
        font = font_for(label, self._font_size)
        _left, _top, right, bottom = self._draw.textbbox(place, label, font=font)
        width, height = self._image.size
        moved = place[0] - max(0, right - width), place[1] - max(0, bottom - height)
        self._draw.text(moved, label, fill=color, font=font)

    def tensor(self) -> Tensor:
        """(3, H, W) float32 in [-1, 1]."""
        pixels = torch.from_numpy(np.array(self._image))  # (H, W, 3)
        return to_values(pixels.permute(2, 0, 1))


@dataclass(eq=False)
class ObjectsCenterPointsConditionalBuilder:
    """Annotations to a fixed number of tokens, and back.

    An object is a class token (its category, and multiples of the number of classes for its flags)
    and a position token (its center on a grid of isqrt(no_tokens) points a side, row by row). What
    is left of `no_max_objects` is filled with `none`. With `encode_crop` the tokens of the crop's
    upper left and lower right corner follow, and positions are those in the whole image; otherwise
    positions are relative to the crop. Raises `UserError` if `no_tokens` is too small.
    """

    no_object_classes: int  # number of categories
    no_max_objects: int  # objects beyond this are left out
    no_tokens: int  # size of the vocabulary
    encode_crop: bool
    use_group_parameter: bool  # class tokens say whether an object stands for a group
    use_additional_parameters: bool  # ... and whether it is occluded, a depiction, an inside
    object_descriptor_length: ClassVar[int] = 2

    def __post_init__(self) -> None:
        additional = OCCLUDED | DEPICTION | INSIDE
        flags = GROUP * self.use_group_parameter | additional * self.use_additional_parameters
        needed = self.no_object_classes * (1 + flags) + 1
        if self.no_tokens < 4:
            raise UserError(
                f"no_tokens {self.no_tokens} is too small: a grid of positions has at least 2 x 2"
            )
        if needed > self.no_tokens:
            raise UserError(
                f"no_tokens {self.no_tokens} is too small: {self.no_object_classes} classes with "
                f"their flags need {needed}"
            )

    @property
    def no_sections(self) -> int:
        """Points on a side of the grid of positions."""
        return isqrt(self.no_tokens)

    @property
    def none(self) -> int:
        """The token that stands for no object."""
        return self.no_tokens - 1

    @property
    def embedding_dim(self) -> int:
        """Number of tokens that `build` gives."""
        return self.no_max_objects * self.object_descriptor_length + 2 * self.encode_crop

    def build(
        self,
        annotations: Iterable[Annotation],
        crop_coordinates: BoundingBox | None = None,
        horizontal_flip: bool = False,
    ) -> Tensor:
        """Tokens int64 (embedding_dim,) of the objects, in random order (Python's generator).

        `crop_coordinates` is what is seen of the image; objects outside are left out.
        """
        return self.build_in_order(shuffled(annotations), crop_coordinates, horizontal_flip)

    def build_in_order(
        self,
        annotations: Sequence[Annotation],
        crop_coordinates: BoundingBox | None = None,
        horizontal_flip: bool = False,
    ) -> Tensor:
        """`build` for objects in the given order."""
        crop = crop_coordinates or WHOLE
        seen = [a for a in annotations if crop_coordinates is None or touches(a.bbox, crop)]
        tokens: list[int] = []
        for annotation in seen[: self.no_max_objects]:
            box = _relative_to(annotation.bbox, WHOLE if self.encode_crop else crop)
            box = mirrored(box) if horizontal_flip else box
            tokens += [self.object_representation(annotation), *self._position_tokens(box)]
        tokens += [self.none] * (self.no_max_objects * self.object_descriptor_length - len(tokens))
        if self.encode_crop:
            tokens += self.token_pair_from_bbox(mirrored(crop) if horizontal_flip else crop)
        return torch.tensor(tokens, dtype=torch.int64)

    def object_representation(self, annotation: Annotation) -> int:
        """The class token of an object.

        Flags count where they are `True`, not 1: COCO's crowds, which are numbers, had the token of
        a single object when published models were trained.
        """
        flags = 0
        if self.use_group_parameter:
            flags |= GROUP * (annotation.is_group_of is True)
        if self.use_additional_parameters:
            flags |= OCCLUDED * (annotation.is_occluded is True)
            flags |= DEPICTION * (annotation.is_depiction is True)
            flags |= INSIDE * (annotation.is_inside is True)
        return annotation.category_no + self.no_object_classes * flags

    def representation_to_annotation(self, representation: int) -> Annotation:
        """What a class token says of its object; nothing else is known.

        Flags that the tokens do not have are None.
        """
        flags, number = divmod(representation, self.no_object_classes)
        known = {"is_group_of": GROUP} if self.use_group_parameter else {}
        if self.use_additional_parameters:
            known |= {"is_occluded": OCCLUDED, "is_depiction": DEPICTION, "is_inside": INSIDE}
        values: dict[str, Any] = {name: bool(flags & flag) for name, flag in known.items()}
        return Annotation(0.0, "", WHOLE, category_no=number, category_id="", **values)

    def _position_tokens(self, box: BoundingBox) -> list[int]:
        return [self.tokenize_coordinates(box[0] + box[2] / 2, box[1] + box[3] / 2)]

    def tokenize_coordinates(self, x: float, y: float) -> int:
        """The token of the nearest point of the grid; x and y are shares, cut to [0, 1]."""
        last = self.no_sections - 1
        return round(clip(y) * last) * self.no_sections + round(clip(x) * last)

    def token_pair_from_bbox(self, bbox: BoundingBox) -> tuple[int, int]:
        """The tokens of the upper left and the lower right corner."""
        x, y, width, height = bbox
        return self.tokenize_coordinates(x, y), self.tokenize_coordinates(x + width, y + height)

    def inverse_build(self, conditional: Tensor) -> tuple[Objects, BoundingBox | None]:
        """Tokens (embedding_dim,) to [(class token, position), ...] and the crop, if encoded."""
        tokens = conditional.tolist()
        crop = self.bbox_from_token_pair(tokens[-2], tokens[-1]) if self.encode_crop else None
        length = self.object_descriptor_length
        objects = [
            (tokens[start], self._position(tokens[start + 1 : start + length]))
            for start in range(0, self.no_max_objects * length, length)
            if tokens[start] != self.none
        ]
        return objects, crop

    def _position(self, tokens: list[int]) -> Any:
        return self.coordinates_from_token(tokens[0])

    def coordinates_from_token(self, token: int) -> Point:
        """x and y of a position token, as shares."""
        last = self.no_sections - 1
        return token % self.no_sections / last, min(token // self.no_sections, last) / last

    def bbox_from_token_pair(self, token1: int, token2: int) -> BoundingBox:
        """The box between two corners, upper left and lower right."""
        x0, y0 = self.coordinates_from_token(token1)
        x1, y1 = self.coordinates_from_token(token2)
        return x0, y0, x1 - x0, y1 - y0

    def plot(
        self,
        conditional: Tensor,
        label_for_category_no: Callable[[int], str],
        figure_size: tuple[int, int],
        line_width: int = 3,
        font_size: int | None = None,
    ) -> Tensor:
        """A picture of the scene: (3, H, W) in [-1, 1] for a `figure_size` of (width, height)."""
        objects, crop = self.inverse_build(conditional)
        canvas = Canvas(figure_size, line_width, font_size)
        for token, position in objects:
            thing = self.representation_to_annotation(token)
            label = label_for_category_no(thing.category_no) + _flag_names(thing)
            self._draw(canvas, position, label, thing.category_no)
        if crop is not None:
            canvas.box(crop, "", "black")
        return canvas.tensor()

    def _draw(self, canvas: Canvas, position: Any, label: str, number: int) -> None:
        canvas.point(position, label, canvas.color(number))


def _flag_names(thing: Annotation) -> str:
    names = {
        "group": thing.is_group_of,
        "occluded": thing.is_occluded,
        "depiction": thing.is_depiction,
        "inside": thing.is_inside,
    }
    return "".join(f" ({name})" for name, flag in names.items() if flag)


def _relative_to(box: BoundingBox, crop: BoundingBox) -> BoundingBox:
    """`box` as shares of `crop`, moved inside it.

    A box that begins outside is not cut there but moved, keeping its size as far as there is room:
    published models have learned their conditions so.
    """
    x0, y0 = clip((box[0] - crop[0]) / crop[2]), clip((box[1] - crop[1]) / crop[3])
    return x0, y0, min(box[2] / crop[2], 1 - x0), min(box[3] / crop[3], 1 - y0)
