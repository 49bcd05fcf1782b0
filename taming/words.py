"""Numbers in the sentences that are printed."""

from __future__ import annotations


def counted(number: int, name: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def there_are(number: int, name: str) -> str:
    """`1 image is`, `2 images are`."""
    return f"{counted(number, name)} {'is' if number == 1 else 'are'}"
