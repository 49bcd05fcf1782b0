"""Files that are made to do harm: pickles that call, archives that grow, paths that climb."""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator

from tests.data.test_bombs import jpeg, npy, png

CALLABLES = (
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("__builtin__", "eval"),
    ("runpy", "run_path"),
    ("importlib", "import_module"),
    ("torch", "load"),
    ("torch", "save"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("torch.utils.cpp_extension", "load_inline"),
    ("torch._utils", "_import_dotted_name"),
    ("torch._inductor.codecache", "write"),
    ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"),
    ("taming.util", "download"),
    ("taming.config", "get_obj_from_str"),
    ("taming.atomic_files", "write_text"),
    ("tests.faults.sandbox", "canary"),
    ("main", "main"),
    ("pathlib", "Path.write_text"),
    ("operator", "attrgetter"),
    ("functools", "partial"),
    ("collections", "namedtuple"),
    ("pytorch_lightning.utilities.cloud_io", "load"),
    ("omegaconf.omegaconf", "OmegaConf.load"),
)
ARGUMENT = "touch ran"


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _pickles(module: str, name: str) -> Iterator[bytes]:
    """A pickle that calls `module.name("touch ran")`, in each way in which pickles call."""
    argument = _text(ARGUMENT) + b"\x85"
    named = f"c{module}\n{name}\n".encode()
    stacked = _text(module) + _text(name) + b"\x93"
    start = b"\x80\x02"
    yield start + named + argument + b"R."
    yield b"\x80\x04" + stacked + argument + b"R."
    yield start + named + argument + b"\x81."
    yield b"(" + _text(ARGUMENT) + f"i{module}\n{name}\n".encode() + b"."
    yield b"(" + named + _text(ARGUMENT) + b"o."
    yield start + named + b")\x81}" + _text("a") + _text(ARGUMENT) + b"sb."


def hostile_pickles() -> Iterator[tuple[str, bytes]]:
    """Checkpoints of both formats of torch that call something: (what, content)."""
    for module, name in CALLABLES:
        for number, content in enumerate(_pickles(module, name)):
            yield f"{module}.{name} {number} zip", zipped({"archive/data.pkl": content})
            if number < 2:
                yield f"{module}.{name} {number} legacy", legacy(content)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive, with what torch's readers look for."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if any(name.endswith("data.pkl") for name in files):
            archive.writestr("archive/version", b"3\n")
            archive.writestr("archive/byteorder", b"little")
    return raw.getvalue()


def legacy(content: bytes) -> bytes:
    """A file as torch before 1.6 wrote it, with this pickle for its content."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + content


# ---------------------------------------------------------------------- archives that grow


def large_record() -> bytes:
    """A checkpoint of 5 MB with a compressed tensor of 1 GiB."""
    storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + _text("0") + _text("cpu")
    storage += b"J" + struct.pack("<i", 2**28) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage
    tensor += b"K\x00J" + struct.pack("<i", 2**28) + b"\x85K\x01\x85\x89ccollections\n"
    tensor += b"OrderedDict\n)RtR"
    content = b"\x80\x02}" + _text("state_dict") + b"}" + _text("w") + tensor + b"ss."
    return _compressed({"archive/data.pkl": (content, 0), "archive/data/0": (b"", 2**30)})


def large_pickle() -> bytes:
    """A checkpoint of 5 MB whose pickle holds a string of 1 GiB."""
    head = b"\x80\x02X" + struct.pack("<I", 2**30)
    return _compressed({"archive/data.pkl": (head, 2**30)})


def large_in_zip(ending: str = "last.ckpt") -> bytes:
    """A zip of 5 MB holding 1 GiB of zeros."""
    return _compressed({ending: (b"", 2**30)})


def _compressed(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A zip of files that begin with some bytes and go on with so many zeros."""
    raw, block = io.BytesIO(), bytes(2**20)
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (head, zeros) in files.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(head)
                for _ in range(zeros // len(block)):
                    file.write(block)
        archive.writestr("archive/version", b"3\n")
    return raw.getvalue()


def lying_zip() -> bytes:
    """A checkpoint whose directory says 10 bytes where 64 MiB come out."""
    raw = bytearray(_compressed({"archive/data.pkl": (b"\x80\x02", 2**26)}))
    central = raw.index(b"PK\x01\x02")
    raw[central + 24 : central + 28] = struct.pack("<I", 10)
    return bytes(raw)


def sparse_tar(name: str, size: int = 2**31) -> bytes:
    """A tar of a few kB with a sparse member of `size` bytes."""
    member = tarfile.TarInfo(name)
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = tarfile.itn(size - 512, 12, tarfile.GNU_FORMAT) + b"00000001000\0"
    header[124:136] = tarfile.itn(512, 12, tarfile.GNU_FORMAT)
    header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + b"x" * 512 + bytes(1024)


def tars(name: str) -> Iterator[tuple[str, bytes]]:
    """Tars that climb, link, or hold things other than files: (what, content)."""
    kinds = {
        "link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "pipe": tarfile.FIFOTYPE,
    }
    for what, kind in kinds.items():
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        yield what, tar_of([(member, b"")])
    for path in (f"../../{name}", f"/tmp/{name}", f"a/../../../../{name}", "..", "/", "\0", "."):
        member = tarfile.TarInfo(path)
        yield f"named {path!r}", tar_of([(member, b"x" * 10)])
    yield "sparse", sparse_tar(name)
    whole = tar_of([(tarfile.TarInfo(name), b"x" * 700)])
    yield "cut short", whole[:800]
    claims = bytearray(whole)
    claims[124:136] = tarfile.itn(2**60, 12, tarfile.GNU_FORMAT)
    claims[148:156] = b" " * 8
    claims[148:156] = f"{sum(claims[:512]):06o}\0 ".encode()
    yield "claims 1 EiB", bytes(claims)


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A tar of these members."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


# ---------------------------------------------------------------------- all of them

Case = tuple[str, str, bytes]  # the target of targets.py, what it is, the file


def hostile_files() -> Iterator[Case]:
    """Every hostile file, with the target that is given it."""
    for what, content in hostile_pickles():
        yield "checkpoint", what, content
    yield "checkpoint", "large record", large_record()
    yield "checkpoint", "large pickle", large_pickle()
    yield "checkpoint", "lying zip", lying_zip()
    yield "checkpoint", "nested zip", zipped({"archive/data.pkl": zipped({"a": b"b"})})
    deep = b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."
    yield "checkpoint", "deep pickle", zipped({"archive/data.pkl": deep})
    for what, content in tars("n01440764.tar"):
        yield "imagenet_tar", what, content
    for what, content in tars("n01440764_1.JPEG"):
        nested = tar_of([(tarfile.TarInfo("n01440764.tar"), content)])
        yield "imagenet_tar", f"inside: {what}", nested
    for what, content in tars("000.png"):
        yield "shards", what, content
    for mode in ("L", "RGB", "RGBA"):
        yield "image", f"png bomb {mode}", png(mode)
        yield "mask", f"png bomb {mode}", png(mode)
    yield "image", "jpeg bomb", jpeg()
    yield "mask", "jpeg bomb", jpeg()
    yield "array", "array bomb", npy()
    yield "array", "larger array bomb", npy(10**12)


def some_hostile_files(every: int) -> list[Case]:
    """A share of the pickles, and all the others."""
    pickles = [case for case in hostile_files() if case[0] == "checkpoint"]
    others = (case for case in hostile_files() if case[0] != "checkpoint")
    return [*itertools.islice(pickles, 0, None, every), *pickles[-5:], *others]
