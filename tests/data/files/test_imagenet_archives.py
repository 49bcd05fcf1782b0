from __future__ import annotations

import io
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest

from taming.data.files import imagenet_archives
from taming.data.files.imagenet_archives import TRAIN, VALIDATION, Split, prepare
from taming.errors import UserError
from tests.kit.archives import sparse_tar
from tests.kit.images import truncate, write_image

FLAT = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 4)]
NAMES = [f"{synset}/{synset}_{i}.JPEG" for synset in ("n01440764", "n01443537") for i in range(3)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def jpeg(tmp_path: Path, seed: int) -> bytes:
    return Path(write_image(tmp_path / "scratch/x.jpg", seed=seed)).read_bytes()


def pack(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def put(split: Split, content: bytes) -> Path:
    split.root.mkdir(parents=True, exist_ok=True)
    (split.root / split.tar).write_bytes(content)
    return split.root


def train_tar(tmp_path: Path) -> bytes:
    inner: dict[str, dict[str, bytes]] = {}
    for seed, name in enumerate(NAMES):
        synset, file = name.split("/")
        file = f"./{file}" if seed % 2 else file  # as `tar c .` names them
        inner.setdefault(synset, {})[file] = jpeg(tmp_path, seed)
    return pack({f"{synset}.tar": pack(files) for synset, files in inner.items()})


def validation_tar(tmp_path: Path, root: Path) -> bytes:
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{name} {synset}\n" for name, synset in zip(FLAT, ("n01443537", "0", "1"), strict=True)
    ]
    (root / "validation_synset.txt").write_text("".join(lines))
    return pack({name: jpeg(tmp_path, seed) for seed, name in enumerate(FLAT)})


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.endswith(".tar")
    }


def test_existing_folder_is_listed_once(tmp_path: Path) -> None:
    for name in NAMES:
        write_image(TRAIN.root / "data" / name)
    assert list(prepare(TRAIN, "x")) == NAMES
    assert (TRAIN.root / "filelist.txt").read_text().split() == NAMES
    assert (TRAIN.root / ".ready").exists()
    write_image(TRAIN.root / "data/n01440764/new.JPEG")
    assert list(prepare(TRAIN, "x")) == NAMES


def test_folder_may_be_a_link(tmp_path: Path) -> None:
    for name in NAMES:
        write_image(tmp_path / "elsewhere" / name)
    TRAIN.root.mkdir(parents=True)
    (TRAIN.root / "data").symlink_to(tmp_path / "elsewhere")
    assert list(prepare(TRAIN, "x")) == NAMES


def test_training_tar_of_tars(tmp_path: Path) -> None:
    root = put(TRAIN, train_tar(tmp_path))
    assert list(prepare(TRAIN, "x")) == NAMES
    assert (root / "data" / NAMES[4]).read_bytes() == jpeg(tmp_path, 4)
    for name in (".ready", TRAIN.tar):  # the tar is no longer needed, also to list them again
        (root / name).unlink()
    assert list(prepare(TRAIN, "x")) == NAMES


def test_several_processes_begin_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(TRAIN, train_tar(tmp_path))
    ends, written = Barrier(2, timeout=0.5), []
    extract = imagenet_archives._extract_file

    def slowly(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
        with suppress(BrokenBarrierError):  # if both unpack, they do so in step
            ends.wait()
        written.append(target.name)
        extract(archive, member, target)

    monkeypatch.setattr(imagenet_archives, "_extract_file", slowly)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(prepare, TRAIN, "x") for _ in range(2)]
        assert [list(names.result()) for names in both] == [NAMES, NAMES]
    assert len(written) == len(NAMES)
    # Where files cannot be locked, or another machine has done the same.
    for name in (".ready", "filelist.txt"):
        (root / name).unlink()
    shutil.rmtree(root / "data")

    def finished(archive: tarfile.TarFile, data: Path, tar: Path) -> None:
        write_image(data / NAMES[0])
        (root / imagenet_archives.UNFINISHED).unlink()

    monkeypatch.setattr(imagenet_archives, "_extract_nested", finished)
    assert list(prepare(TRAIN, "x")) == NAMES[:1]


def test_validation_tar_is_sorted_by_the_synset_list(tmp_path: Path) -> None:
    put(VALIDATION, validation_tar(tmp_path, VALIDATION.root))
    expected = [f"n01440764/{FLAT[1]}", f"n01443537/{FLAT[0]}", f"n01443537/{FLAT[2]}"]
    assert list(prepare(VALIDATION, "x")) == expected


@pytest.mark.parametrize("moment", range(1, 7))
def test_interrupted_anywhere_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    root = put(TRAIN, train_tar(tmp_path))
    count = 0

    def dying_copy(source: io.BytesIO, sink: io.BytesIO, length: int) -> None:
        nonlocal count
        count += 1
        sink.write(source.read(10 if count == moment else -1))
        if count == moment:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(imagenet_archives.shutil, "copyfileobj", dying_copy)
        with pytest.raises(KeyboardInterrupt):
            prepare(TRAIN, "x")
    assert not (root / ".ready").exists()
    for path in (root / "data").rglob("*.JPEG"):
        path.write_bytes(b"of another size")
    assert list(prepare(TRAIN, "x")) == NAMES
    found = tree(root)
    assert {name: found[f"data/{name}"] for name in NAMES} == {
        name: jpeg(tmp_path, seed) for seed, name in enumerate(NAMES)
    }


@pytest.mark.parametrize("name", ["../../evil.JPEG", "/tmp/evil.JPEG", "a/b.JPEG", ".hidden"])
def test_members_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    put(TRAIN, pack({"n01440764.tar": pack({name: b"x"})}))
    with pytest.raises(UserError, match=r"which is no plain file of its folder"):
        prepare(TRAIN, "x")
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil.JPEG").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        link = tarfile.TarInfo("n01440764.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    put(TRAIN, raw.getvalue())
    with pytest.raises(UserError, match="'n01440764.tar', which is no plain file"):
        prepare(TRAIN, "x")


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    put(TRAIN, sparse_tar("n01440764.tar", 2**40))
    with pytest.raises(UserError, match="holds 'n01440764.tar' as a sparse file"):
        prepare(TRAIN, "ImageNetTrain")
    put(TRAIN, pack({"n01440764.tar": sparse_tar("a.JPEG", 2**31)}))
    with pytest.raises(UserError, match="holds 'a.JPEG' as a sparse file"):
        prepare(TRAIN, "ImageNetTrain")
    assert sum(path.lstat().st_blocks * 512 for path in TRAIN.root.rglob("*")) < 10**6


def test_tars_cut_short(tmp_path: Path) -> None:
    root = put(TRAIN, train_tar(tmp_path))
    truncate(root / TRAIN.tar, 0.6)
    with pytest.raises(UserError, match="ILSVRC2012_img_train.tar is no complete tar file"):
        prepare(TRAIN, "x")
    inner = pack({"n01440764_0.JPEG": jpeg(tmp_path, 0)})[:700]
    put(TRAIN, pack({"n01440764.tar": inner}))
    with pytest.raises(UserError, match="ILSVRC2012_img_train.tar is no complete tar file"):
        prepare(TRAIN, "x")
    for content in (b"", bytes(512)):
        put(TRAIN, content)
        with pytest.raises(UserError, match="no complete tar file"):
            prepare(TRAIN, "x")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither data/<synset>.* nor ILSVRC2012_img_train.tar"):
        prepare(TRAIN, "ImageNetTrain")
    write_image(TRAIN.root / "data/loose.JPEG")
    with pytest.raises(UserError, match="loose.JPEG is in no class folder"):
        prepare(TRAIN, "ImageNetTrain")


def test_synset_list_with_mistakes(tmp_path: Path) -> None:
    put(VALIDATION, validation_tar(tmp_path, VALIDATION.root))
    file = VALIDATION.root / "validation_synset.txt"
    for wrong in ("cat", "1000", "n0144353", "n01443537 x"):
        file.write_text(f"{FLAT[0]} 999\n{FLAT[1]} {wrong}\n")
        with pytest.raises(UserError, match="line 2 of .*synset.txt is not 'image synset'"):
            prepare(VALIDATION, "x")
    file.write_text(f"{FLAT[0]} n01443537\n")
    with pytest.raises(UserError, match=f"lacks {FLAT[1]}, which is in ILSVRC2012_img_val.tar"):
        prepare(VALIDATION, "x")
    file.unlink()
    with pytest.raises(UserError, match="the validation tar needs it to sort its images"):
        prepare(VALIDATION, "x")
