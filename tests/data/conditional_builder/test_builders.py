from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch

from taming.data.conditional_builder.objects_bbox import ObjectsBoundingBoxConditionalBuilder
from taming.data.conditional_builder.objects_center_points import (
    Canvas,
    ObjectsCenterPointsConditionalBuilder,
)
from taming.data.helper_types import Annotation
from taming.errors import UserError
from tests.support import GOLDEN

CASES = json.loads((GOLDEN / "conditional_builder.json").read_text())
BUILDERS = {
    "objects_bbox": ObjectsBoundingBoxConditionalBuilder,
    "objects_center_points": ObjectsCenterPointsConditionalBuilder,
}
OPTIONS = {
    "no_object_classes": 10,
    "no_max_objects": 4,
    "no_tokens": 1024,
    "encode_crop": True,
    "use_group_parameter": True,
    "use_additional_parameters": True,
}


def annotation(box: Any, category_no: int, **flags: bool) -> Annotation:
    return Annotation(0.1, "x", tuple(box), category_no, str(category_no), **flags)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["conditional"])
def test_tokens_and_inverse_are_the_original_s(case: dict[str, Any]) -> None:
    builder = BUILDERS[case["conditional"]](**case["builder"])
    objects = [annotation(a.pop("bbox"), **a) for a in map(dict, case["annotations"])]
    crop = tuple(case["crop"]) if case["crop"] else None
    tokens = builder.build_in_order(objects, crop, case["flip"])
    assert tokens.tolist() == case["tokens"] and tokens.dtype == torch.int64
    assert builder.embedding_dim == len(tokens) == case["embedding_dim"]
    objects_and_crop = json.loads(json.dumps(builder.inverse_build(tokens)))
    assert objects_and_crop == case["inverse"]


def test_objects_are_shuffled() -> None:
    builder = ObjectsBoundingBoxConditionalBuilder(**OPTIONS)
    objects = [annotation((0.1 * i, 0.1, 0.1, 0.1), i) for i in range(4)]
    random.seed(0)
    seen = {tuple(builder.build(objects)[:12:3].tolist()) for _ in range(50)}
    assert len(seen) > 10 and all(sorted(order) == [0, 1, 2, 3] for order in seen)
    assert [a.category_no for a in objects] == [0, 1, 2, 3]
    many = [*objects, annotation((0, 0, 1, 1), 9)]
    assert builder.build_in_order(many)[:12:3].tolist() == [0, 1, 2, 3]  # the first ones


def test_flags_that_are_not_enabled_or_not_known_do_not_count() -> None:
    plain = OPTIONS | {"use_group_parameter": False, "use_additional_parameters": False}
    flagged = annotation((0, 0, 1, 1), 3, is_group_of=True, is_inside=True)
    for options, expected in ((OPTIONS, 3 + 10 * 9), (plain, 3)):
        builder = ObjectsCenterPointsConditionalBuilder(**options)
        assert builder.build([flagged])[0] == expected
        assert builder.build([annotation((0, 0, 1, 1), 3)])[0] == 3


def test_vocabulary_too_small_for_the_classes() -> None:
    with pytest.raises(UserError, match="no_tokens 160 is too small: 10 classes .* need 161"):
        ObjectsBoundingBoxConditionalBuilder(**OPTIONS | {"no_tokens": 160})
    few = OPTIONS | {"no_object_classes": 1}
    few |= {"use_group_parameter": False, "use_additional_parameters": False}
    with pytest.raises(UserError, match="no_tokens 3 is too small: a grid .* at least 2 x 2"):
        ObjectsBoundingBoxConditionalBuilder(**few | {"no_tokens": 3})
    smallest = ObjectsCenterPointsConditionalBuilder(**few | {"no_tokens": 4})
    assert smallest.coordinates_from_token(3) == (1, 1)


@pytest.mark.parametrize("name", BUILDERS)
def test_plot(name: str) -> None:
    builder = BUILDERS[name](**OPTIONS)
    objects = [annotation((0.5, 0.5, 0.4, 0.3), 3, is_group_of=True)]
    named = []

    def label(number: int) -> str:
        named.append(number)
        return "cat"

    picture = builder.plot(builder.build(objects), label, (96, 64), line_width=2)
    assert picture.shape == (3, 64, 96) and named == [3]
    assert picture.min() >= -1 and picture.max() == 1
    drawn = (picture < 1).any(dim=0)
    assert drawn[0, 0] and drawn[40:60, 60:90].any()  # the crop's outline, the object
    unnamed = builder.plot(builder.build(objects), lambda number: "", (96, 64), line_width=2)
    assert not torch.equal(picture, unnamed)


def test_places_on_a_canvas_are_shares_of_its_sides() -> None:
    def drawn(x: float, label: str) -> torch.Tensor:
        canvas = Canvas((200, 64), line_width=1, font_size=12)
        canvas.box((x, 0.25, 0.1, 0.5), label, "red")
        return (canvas.tensor() < 1).any(dim=0)

    rows, columns = torch.nonzero(drawn(0.5, ""), as_tuple=True)
    ends = [rows.min(), rows.max(), columns.min(), columns.max()]
    expected = [0.25 * 63, 0.75 * 63, 0.5 * 199, 0.6 * 199]
    assert [int(end) for end in ends] == pytest.approx(expected, abs=1)
    inside, outside = (int((drawn(x, "category") & ~drawn(x, "")).sum()) for x in (0.2, 0.89))
    assert outside > 0.8 * inside > 0  # the whole text, moved to the left


@pytest.mark.parametrize("flag", [True, 1])
def test_only_flags_that_are_true_count(flag: Any) -> None:
    """COCO's crowds are marked by 1, and published models have not learned them as groups."""
    builder = ObjectsCenterPointsConditionalBuilder(**OPTIONS)
    token = builder.object_representation(annotation((0, 0, 1, 1), 3, is_group_of=flag))
    assert token == (13 if flag is True else 3)
    for name, value in (("is_occluded", 2), ("is_depiction", 4), ("is_inside", 8)):
        other = builder.object_representation(annotation((0, 0, 1, 1), 3, **{name: flag}))
        assert other == (3 + 10 * value if flag is True else 3)
        assert builder.representation_to_annotation(other)._asdict()[name] is (flag is True)
    thing = builder.representation_to_annotation(token)
    assert thing.category_no == 3 and thing.is_group_of is (flag is True)
    assert thing.is_occluded is thing.is_inside is False and thing.is_truncated is None
    plain = ObjectsCenterPointsConditionalBuilder(**OPTIONS | {"use_group_parameter": False})
    assert plain.representation_to_annotation(token).is_group_of is None


def test_coordinates_and_their_tokens() -> None:
    builder = ObjectsBoundingBoxConditionalBuilder(**OPTIONS)
    assert builder.tokenize_coordinates(1, 0) == 31 and builder.tokenize_coordinates(0, 1) == 992
    assert builder.tokenize_coordinates(7, -1) == 31
    assert builder.coordinates_from_token(31) == (1, 0)
    uneven = ObjectsBoundingBoxConditionalBuilder(**OPTIONS | {"no_tokens": 1000})
    assert uneven.coordinates_from_token(999) == (7 / 30, 1)  # beyond the last row of 31
    relative = ObjectsBoundingBoxConditionalBuilder(**OPTIONS | {"encode_crop": False})
    tokens = relative.build([annotation((0.5, 0.25, 0.2, 0.1), 3)], (0.25, 0.125, 0.5, 0.25))
    assert tokens[1:3].tolist() == [16 * 32 + 16, 28 * 32 + 28]
    pair = builder.token_pair_from_bbox((0, 0, 1, 1))
    assert pair == (0, 1023) and builder.bbox_from_token_pair(*pair) == (0, 0, 1, 1)


def test_subclasses_make_tokens_and_labels_of_their_own() -> None:
    class Own(ObjectsBoundingBoxConditionalBuilder):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.moved = 1

        def object_representation(self, annotation: Annotation) -> int:
            return annotation.category_no + self.moved

        def representation_to_annotation(self, representation: int) -> Annotation:
            number = representation - self.moved
            return super().representation_to_annotation(representation)._replace(category_no=number)

        def token_pair_from_bbox(self, bbox: Any) -> tuple[int, int]:
            return 5, 6

        def bbox_from_token_pair(self, token1: int, token2: int) -> Any:
            return 0.0, 0.0, float(token1), float(token2)

    builder, named = Own(**OPTIONS), []
    tokens = builder.build([annotation((0, 0, 1, 1), 3)])
    assert tokens.tolist() == [4, 5, 6, *[1023] * 9, 5, 6]
    assert builder.inverse_build(tokens) == ([(4, (0, 0, 5, 6))], (0, 0, 5, 6))
    builder.plot(tokens, lambda number: named.append(number) or "cat", (64, 64))
    assert named == [3]
