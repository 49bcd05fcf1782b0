"""Pickles of Python 2, whose texts are bytes of any encoding, and of older protocols."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taming.checkpoint import inert, read_content
from taming.checkpoint.stand_ins import Inert


def old_array(numbers: np.ndarray[Any, Any], protocol: int, scalar: bool = False) -> bytes:
    """An array, or its only number, as NumPy in Python 2 pickles it: its bytes in a string."""

    def text(data: bytes) -> bytes:
        if protocol == 0:
            escaped = "".join(f"\\x{byte:02x}" for byte in data)
            return f"S'{escaped}'\n".encode()
        return b"T" + struct.pack("<I", len(data)) + data

    kind = b"cnumpy\ndtype\n(" + text(numbers.dtype.str[1:].encode()) + b"I0\nI1\ntR"
    kind += b"(I3\n" + text(b"<") + b"NNNI-1\nI-1\nI0\ntb"
    start = b"\x80\x02" * (protocol > 0) + b"cnumpy.core.multiarray\n"
    if scalar:
        return start + b"scalar\n(" + kind + text(numbers.tobytes()) + b"tR."
    made = b"_reconstruct\n(cnumpy\nndarray\n(I0\nt" + text(b"b") + b"tR"
    sides = b"".join(b"I%d\n" % side for side in numbers.shape)
    return (
        start + made + b"(I1\n(" + sides + b"t" + kind + b"I00\n" + text(numbers.tobytes()) + b"tb."
    )


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("kind", ["f4", "f8", "f2"])
def test_arrays_and_numbers_of_python_2(tmp_path: Path, protocol: int, kind: str) -> None:
    numbers = np.linspace(-3, 3, 15).reshape(3, 5).astype(kind)
    (tmp_path / "old.pkl").write_bytes(old_array(numbers, protocol))
    found = read_content(tmp_path / "old.pkl").tensor()
    assert torch.equal(found, torch.from_numpy(numbers))
    for number in (-0.1, 0.1, 1e4):
        alone = np.array([number], kind)
        (tmp_path / "old.pkl").write_bytes(old_array(alone, protocol, scalar=True))
        assert read_content(tmp_path / "old.pkl") == alone.item()


def test_names_and_bytes_of_older_protocols(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"x": bytearray(b"a\xff\xc3\xa9"), "y": b"\xff\xc3\xa9"}, 2))
    assert read_content(path) == {"x": b"a\xff\xc3\xa9", "y": b"\xff\xc3\xa9"}
    path.write_bytes("\u0080\u0003cmödul\nKläss\n)\u0081.".encode().replace(b"\xc2", b""))
    assert isinstance(read_content(path), Inert)
    inner = io.BytesIO()
    torch.save(torch.tensor([-1.5]), inner, _use_new_zipfile_serialization=False)
    data = inner.getvalue()
    head = b"\x80\x02ctorch.storage\n_load_from_bytes\n(T"
    path.write_bytes(head + struct.pack("<I", len(data)) + data + b"tR.")
    assert torch.equal(read_content(path), torch.tensor([-1.5]))


def test_texts_of_old_pythons_need_not_be_utf8(tmp_path: Path) -> None:
    assert inert.read_stream(tmp_path, io.BytesIO(b"\x80\x02U\x02\xc3\xa9.")) == "é"
    assert inert.read_stream(tmp_path, io.BytesIO(b"\x80\x02U\x02\xff\xfe.")) == "\udcff\udcfe"
