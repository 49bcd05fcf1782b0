"""Files and folders that hold no weights: what they are, and what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from taming.checkpoint import find_run, read_content
from taming.errors import UserError
from taming.weight_choice import choosing_weights

STATE = {"a.weight": torch.ones(2, 2)}


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file)
    return file.getvalue()


def tar(mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("model.ckpt")
        entry.size = len(checkpoint())
        archive.addfile(entry, io.BytesIO(checkpoint()))
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(STATE, dtype=object), allow_pickle=True)
    return file.getvalue()


ONNX = b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:" + bytes(20)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FILES = {
    "gzip": (gzip.compress(checkpoint()), "is packed with gzip; unpack it .*gunzip"),
    "xz": (lzma.compress(checkpoint()), "is packed with xz; unpack it .*unxz"),
    "bz2": (bz2.compress(checkpoint()), "is packed with bzip2; unpack it .*bunzip2"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "is packed with zstd; unpack it"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(50), "is packed with lz4; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + b"0" * 50, "is a 7z archive; unpack it"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + b"0" * 50, "is a RAR archive; unpack it"),
    "tar": (tar(), r"is a tar archive; unpack it .*tar xf"),
    "tar.gz": (tar("w:gz"), "is packed with gzip; .*tar xzf"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file .*state_dict"),
    "gguf": (b"GGUF" + b"\x03" * 100, "is a GGUF file.*state_dict"),
    "onnx": (ONNX, "is an ONNX model.*state_dict"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(50), "is a TFLite model.*state_dict"),
    "keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "is a Keras archive"),
    "lfs": (POINTER, "is a pointer of git-lfs.*git lfs pull"),
    "npy": (array(), r"is one NumPy array; save weights by name"),
    "pdf": (b"%PDF-1.4\n", "is a PDF, not a checkpoint"),
    "hole": (zipped("x/version", "x/data/0"), r"is damaged: a part of it is missing \(data.pkl\)"),
    "zip": (zipped("model.ckpt"), "is an archive without weights; unpack it"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_files_that_hold_no_weights(tmp_path: Path, kind: str, name: str) -> None:
    content, message = FILES[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} {message}"):
        read_content(path)


def message_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_run(path)
    return str(caught.value)


def test_folders_of_other_programs(tmp_path: Path) -> None:
    distributed, deepspeed = tmp_path / "distributed", tmp_path / "deepspeed"
    dcp.save({"model": STATE}, checkpoint_id=distributed / "step5")
    for path in (distributed, distributed / "step5"):
        text = message_of(path)
        assert "but a checkpoint of torch.distributed: join it with python -m" in text
        assert text.endswith(f"dcp_to_torch {distributed / 'step5'} model.pt")
    (deepspeed / "global_step5").mkdir(parents=True)
    torch.save({"module": STATE}, deepspeed / "global_step5" / "mp_rank_00_model_states.pt")
    torch.save({"x": 1}, deepspeed / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for path in (deepspeed, deepspeed / "global_step5"):
        assert "a checkpoint of DeepSpeed: join it with the zero_to_fp32.py" in message_of(path)
    for name in ("b.pt", "a.pt"):
        torch.save(STATE, tmp_path / name)
    assert message_of(tmp_path).endswith("but a.pt, b.pt: name one of them")
    os.mkfifo(tmp_path / "pipe")
    assert message_of(tmp_path / "pipe").endswith(
        "pipe is neither a file nor a folder, but a device or a pipe"
    )


@pytest.mark.parametrize("place", [".", "archive"])
def test_checkpoints_that_were_unpacked_or_packed_anew(tmp_path: Path, place: str) -> None:
    torch.manual_seed(0)
    torch.save({"weight": torch.randn(99), "zeros": torch.zeros(999)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    folder = tmp_path / "unpacked"
    for name, content in parts.items():
        (folder / place / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / place / name).write_bytes(content)
    packs = f"cd {folder / place} && zip -0 -r ../model.pt ."
    assert message_of(folder) == (
        f"{folder} is a checkpoint that was unpacked; pack it again, without compression: {packs}"
    )
    for packed in ((), ("data/0", "data/1"), ("data/0",)):  # noise alone becomes no smaller
        with zipfile.ZipFile(tmp_path / "anew.pt", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content, zipfile.ZIP_DEFLATED if name in packed else None)
        if not packed:
            assert read_content(tmp_path / "anew.pt")["zeros"].shape == (999,)
            continue
        with pytest.raises(UserError, match=r"packed anew, with .*: zip -0 -r \.\./model.pt \."):
            read_content(tmp_path / "anew.pt")


def test_only_runs_are_stopped_before_their_first_save(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "2026-01-01T00-00-00-project.yaml").write_text("model: {}")
    assert "the run was stopped before its first save" in message_of(tmp_path)


def test_a_cache_of_the_hub(tmp_path: Path) -> None:
    def add(revision: str) -> Path:
        folder = tmp_path / "snapshots" / revision
        folder.mkdir(parents=True)
        save_file(STATE, folder / "model.safetensors")
        return folder / "model.safetensors"

    first = add("abc")
    assert find_run(tmp_path).checkpoint == first
    second = add("def")
    assert message_of(tmp_path).endswith("revisions; name one of snapshots/abc, snapshots/def")
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("def\n")
    assert find_run(tmp_path).checkpoint == second


def test_a_file_with_the_average_is_preferred_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, average = tmp_path / "model.safetensors", tmp_path / "model_ema.safetensors"
    save_file(STATE, raw)
    assert find_run(tmp_path).checkpoint == raw
    save_file(STATE, average)
    assert find_run(tmp_path).checkpoint == average
    expected = f"{average}: the moving average of model.safetensors (--weights raw takes that)"
    assert expected in caplog.text
    with choosing_weights("raw", ()):
        assert find_run(tmp_path).checkpoint == raw
