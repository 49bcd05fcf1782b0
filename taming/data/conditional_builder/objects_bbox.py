"""Each object as (class, upper left corner, lower right corner)."""

from __future__ import annotations

from typing import Any

from taming.data.conditional_builder.objects_center_points import (
    Canvas,
    ObjectsCenterPointsConditionalBuilder,
)
from taming.data.helper_types import BoundingBox


class ObjectsBoundingBoxConditionalBuilder(ObjectsCenterPointsConditionalBuilder):
    """As the builder for centers, with two position tokens: the corners of the box."""

    object_descriptor_length = 3

    def _position_tokens(self, box: BoundingBox) -> list[int]:
        return list(self.token_pair_from_bbox(box))

    def _position(self, tokens: list[int]) -> Any:
        return self.bbox_from_token_pair(*tokens)

    def _draw(self, canvas: Canvas, position: Any, label: str, number: int) -> None:
        canvas.box(position, label, canvas.color(number))
