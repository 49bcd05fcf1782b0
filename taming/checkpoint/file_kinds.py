"""What a file or folder is that holds no weights to be read, and what to do with it."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

_UNPACK = "unpack it and give the checkpoint inside"
_EXPORT = "save the model's state_dict() with torch.save, or as safetensors, where it was made"
_EXPORT_WEIGHTS = f"is {{}}, which holds no weights by name here; {_EXPORT}"

# How files begin -> what they are. Those of the second table have these bytes at a later place.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", f"is packed with gzip; {_UNPACK} (gunzip, or tar xzf)"),
    (b"\xfd7zXZ\0", f"is packed with xz; {_UNPACK} (unxz, or tar xJf)"),
    (b"BZh", f"is packed with bzip2; {_UNPACK} (bunzip2, or tar xjf)"),
    (b"\x28\xb5\x2f\xfd", f"is packed with zstd; {_UNPACK} (unzstd)"),
    (b"\x04\x22\x4d\x18", f"is packed with lz4; {_UNPACK} (unlz4)"),
    (b"7z\xbc\xaf\x27\x1c", f"is a 7z archive; {_UNPACK} (7z x)"),
    (b"Rar!\x1a\x07", f"is a RAR archive; {_UNPACK} (unrar x)"),
    (b"\x89HDF\r\n\x1a\n", _EXPORT_WEIGHTS.format("an HDF5 file (of Keras, say)")),
    (b"GGUF", _EXPORT_WEIGHTS.format("a GGUF file")),
    (b"\x93NUMPY", "is one NumPy array; save weights by name, with numpy.savez or torch.save"),
    (
        b"version https://git-lfs.github.com/spec/",
        "is a pointer of git-lfs, not the file itself; fetch that with git lfs pull",
    ),
    (b"\x89PNG", "is an image, not a checkpoint"),
    (b"\xff\xd8\xff", "is an image, not a checkpoint"),
    (b"GIF8", "is an image, not a checkpoint"),
    (b"%PDF", "is a PDF, not a checkpoint"),
)
_LATER: tuple[tuple[int, bytes, str], ...] = (
    (257, b"ustar", f"is a tar archive; {_UNPACK} (tar xf)"),
    (4, b"TFL3", _EXPORT_WEIGHTS.format("a TFLite model")),
)
_ONNX = (b"pytorch", b"onnx", b"tf2onnx", b"skl2onnx", b"keras2onnx")  # who has written it


def what_is_wrong(path: Path, error: Exception) -> str:
    """The rest of a sentence about a file that cannot be read, because of `error`."""
    with path.open("rb") as file:
        start = file.read(512)
    size = f"{path.stat().st_size:,} bytes"
    if not start:
        return "is an empty file; fetch or save it again"
    if known := _known(start) or _packed(path, start, str(error), size):
        return known
    if path.suffix != ".safetensors" and start.isascii() and b"\0" not in start:
        return "is a text file, not a checkpoint"
    reason = str(error).split("\n")[0].strip() or type(error).__name__
    return f"is no checkpoint, or damaged or cut short ({size}: {reason}); fetch or save it again"


def _known(start: bytes) -> str:
    begins = [text for magic, text in _MAGIC if start.lstrip().startswith(magic)]
    begins += [text for place, magic, text in _LATER if start[place:].startswith(magic)]
    if begins:
        return begins[0]
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "is a web page, not a checkpoint; its link may need a browser or a login"
    # A protocol buffer: the version of the format, then the name of its writer.
    if start[:1] == b"\x08" and any(name in start[2:24].lower() for name in _ONNX):
        return _EXPORT_WEIGHTS.format("an ONNX model")
    return ""


def _packed(path: Path, start: bytes, error: str, size: str) -> str:
    """Of a zip archive."""
    if not start.startswith(b"PK"):
        return ""
    if not zipfile.is_zipfile(path):
        return f"is cut short (it ends after {size}); fetch or save it again"
    with zipfile.ZipFile(path) as archive:
        names, records = archive.namelist(), archive.infolist()
    compressed = any("data/" in entry.filename and entry.compress_type for entry in records)
    if compressed and any(name.endswith("data.pkl") for name in names):
        return (
            f"was packed anew, with compression ({error}); unpack it, and in the folder that has "
            "data.pkl pack it without: zip -0 -r ../model.pt ."
        )
    if "data.pkl" not in error:
        return ""
    if any("/data/" in name or name.endswith("/version") for name in names):
        return "is damaged: a part of it is missing (data.pkl); fetch or save it again"
    if any(name.endswith(("model.json", "config.json", ".weights.h5")) for name in names):
        return _EXPORT_WEIGHTS.format("a Keras archive")
    return "is an archive without weights; " + _UNPACK


# ---------------------------------------------------------------------- folders


def what_folder(folder: Path, weights: list[str]) -> str:
    """The rest of a sentence about a folder in which no checkpoint is found.

    `weights` are files of which none is preferred.
    """
    if any(folder.glob("configs/*-project.yaml")):
        return "holds no checkpoints/last.ckpt: the run was stopped before its first save"
    if parts := [p.parent for p in _below(folder, "data.pkl") if (p.parent / "data").is_dir()]:
        return (
            "is a checkpoint that was unpacked; pack it again, without compression: "
            f"cd {shlex.quote(str(parts[0]))} && zip -0 -r ../model.pt ."
        )
    if sharded := next((p.parent for p in _below(folder, ".metadata")), None):
        name = shlex.quote(str(sharded))
        return (
            f"holds no checkpoints/last.ckpt, but a checkpoint of torch.distributed: join it with "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {name} model.pt"
        )
    if any(_below(folder, "*_model_states.pt")) or any(_below(folder, "*_optim_states.pt")):
        return (
            "holds no checkpoints/last.ckpt, but a checkpoint of DeepSpeed: join it with the "
            "zero_to_fp32.py beside it (python zero_to_fp32.py . model.pt), and give that"
        )
    if revisions := [path.name for path in sorted(folder.glob("snapshots/*"))]:
        named = ", ".join(f"snapshots/{name}" for name in revisions)
        return f"is a hub's cache of several revisions; name one of {named}"
    if len(weights) > 1:
        return f"holds no checkpoints/last.ckpt, but {', '.join(sorted(weights))}: name one of them"
    return "holds no checkpoints/last.ckpt: it is no run, or stopped before its first save"


def _below(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for way in (pattern, f"*/{pattern}") for path in folder.glob(way))
