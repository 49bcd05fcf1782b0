"""The classes of objects in scenes: which are used, and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taming.config import get_obj_from_str
from taming.data.helper_types import Category
from taming.errors import UserError


class NumberedCategories:
    """Categories by id and by number; methods may be overridden.

    Attributes:
        categories: by id, those that are used.
        category_ids, category_number: ids by number, and numbers by id.
        category_allow_list: names of the only ones to use, or None.
        category_mapping: ids that are replaced, and what replaces them.
    """

    def choose_categories(
        self, categories: Iterable[Category], allow_list_target: str, mapping_target: str
    ) -> None:
        """Set the attributes; the targets are as in `AnnotatedObjectsDataset`."""
        self.category_mapping = _named(mapping_target, Mapping) if mapping_target else {}
        listed = _named(allow_list_target, Sequence) if allow_list_target else None
        names = None if listed is None else {e if isinstance(e, str) else e[0] for e in listed}
        self.category_allow_list: set[str] | None = names
        self.categories = {category.id: category for category in categories}
        self.filter_categories()
        self.setup_category_id_and_number()

    def filter_categories(self) -> None:
        """Leave those in `categories` that are allowed and that no other one replaces."""
        allowed = self.category_allow_list
        self.categories = {
            identity: category
            for identity, category in self.categories.items()
            if identity not in self.category_mapping
            and (allowed is None or category.name in allowed)
        }

    def category_order(self, identity: str) -> tuple[bool, str]:
        """The key by which the ids of categories are sorted before they are numbered."""
        return False, identity

    def setup_category_id_and_number(self) -> None:
        """Number `categories`."""
        self.category_ids = sorted(self.categories, key=self.category_order)
        self.category_number = {identity: i for i, identity in enumerate(self.category_ids)}

    def numbers_with_replaced(self) -> dict[str, int]:
        """Numbers by category id, including the ids that are replaced."""
        numbers, mapping = self.category_number, self.category_mapping
        return numbers | {old: numbers[new] for old, new in mapping.items() if new in numbers}

    @property
    def no_classes(self) -> int:
        """The number of categories."""
        return len(self.categories)

    def get_category_number(self, category_id: str) -> int:
        """The number of a category, as in tokens."""
        return self.category_number[category_id]

    def get_category_id(self, category_no: int) -> str:
        """The id of the category of that number."""
        return self.category_ids[category_no]

    def get_textual_label_for_category_id(self, category_id: str) -> str:
        """The name of a category."""
        return self.categories[category_id].name

    def get_textual_label_for_category_no(self, category_no: int) -> str:
        """The name of a category by its number."""
        return self.get_textual_label_for_category_id(self.get_category_id(category_no))


def _named(target: str, kind: type) -> Any:
    """The table that a config names by `target`."""
    table = get_obj_from_str(target)
    if not isinstance(table, kind):
        raise UserError(f"{target} is no {kind.__name__.lower()} of categories")
    return table
