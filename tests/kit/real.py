"""Where a few real files of each format are; the tests that use them skip where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("TAMING_SAMPLE_DATA", Path(__file__).parents[3] / "shared/data")
).absolute()

needs_real_data = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no sample data: set TAMING_SAMPLE_DATA to its folder"
)


def link_real_data(folder: Path) -> None:
    """`folder/data` becomes a link to the sample data, which stay where they are."""
    (folder / "data").symlink_to(FOLDER)


TOKENIZERS = FOLDER.parent / "tokenizers"
"""Numbers of other projects' tokenizers: small ones with weights, and whole ones by names."""

needs_tokenizers = pytest.mark.skipif(
    not TOKENIZERS.is_dir(), reason="no numbers of other tokenizers beside TAMING_SAMPLE_DATA"
)
