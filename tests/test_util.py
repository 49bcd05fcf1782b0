import pytest

from taming import util
from taming.errors import UserError
from taming.util import KeyNotFoundError, download, get_ckpt_path, md5_hash, retrieve

MD5 = util.MD5_MAP["vgg_lpips"]


def test_download_places_a_whole_file(tmp_path):
    source, target = tmp_path / "source.bin", tmp_path / "new" / "target.bin"
    source.write_bytes(bytes(range(256)) * 20)
    download(source.as_uri(), target, chunk_size=1000)
    assert target.read_bytes() == source.read_bytes()
    assert md5_hash(target) == md5_hash(source)
    assert [path.name for path in target.parent.iterdir()] == ["target.bin"]


def test_a_failed_download_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="could not download .*missing"):
        download((tmp_path / "missing").as_uri(), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_md5_of_known_text(tmp_path):
    (tmp_path / "text").write_bytes(b"abc")
    assert md5_hash(tmp_path / "text") == "900150983cd24fb0d6963f7d28e17f72"


def test_calibrated_layers_are_restored_if_damaged(tmp_path):
    path = get_ckpt_path("vgg_lpips", tmp_path / "cache")
    assert md5_hash(path) == MD5
    with open(path, "wb") as file:
        file.write(b"damaged")
    assert md5_hash(get_ckpt_path("vgg_lpips", tmp_path / "cache")) != MD5
    assert md5_hash(get_ckpt_path("vgg_lpips", tmp_path / "cache", check=True)) == MD5
    with pytest.raises(UserError, match="vgg_other"):
        get_ckpt_path("vgg_other", tmp_path)


def test_checkpoints_that_a_program_has_listed(tmp_path, monkeypatch):
    source = tmp_path / "source.bin"
    source.write_bytes(b"abc")
    monkeypatch.setitem(util.URL_MAP, "own", source.as_uri())
    monkeypatch.setitem(util.CKPT_MAP, "own", "own.pth")
    monkeypatch.setitem(util.MD5_MAP, "own", "900150983cd24fb0d6963f7d28e17f72")
    path = get_ckpt_path("own", tmp_path / "cache")
    assert path == str(tmp_path / "cache/own.pth") and md5_hash(path) == md5_hash(source)
    monkeypatch.setitem(util.MD5_MAP, "own", "0")
    assert get_ckpt_path("own", tmp_path / "cache") == path
    with pytest.raises(UserError, match="own.pth has the MD5 9001.* instead of 0; delete it"):
        get_ckpt_path("own", tmp_path / "cache", check=True)


def test_retrieve_from_nested_containers():
    config = {"model": {"layers": [{"width": 3}, {"width": 5}], "7": "seven"}}
    assert retrieve(config, "model/layers/1/width") == 5
    assert retrieve(config, "model.7", splitval=".") == "seven"
    assert retrieve(config, "model/depth", default=2) == 2
    assert retrieve(config, "model/depth", default=2, pass_success=True) == (2, False)
    assert retrieve(config, "model/layers/0", pass_success=True) == ({"width": 3}, True)


@pytest.mark.parametrize("key", ["model/depth", "model/layers/2", "model/layers/x", "model/7/8"])
def test_retrieve_names_the_missing_key(key):
    config = {"model": {"layers": [1, 2], "7": None}}
    with pytest.raises(KeyNotFoundError, match=f"^{key}: .*found up to model") as caught:
        retrieve(config, key)
    assert caught.value.keys == key.split("/") and caught.value.visited[0] == "model"


def test_retrieve_expands_callables_in_place():
    config = {"data": lambda: {"size": lambda: 9}}
    with pytest.raises(KeyNotFoundError, match="expand=False"):
        retrieve(config, "data/size", expand=False)
    assert retrieve(config, "data/size") == 9
    assert config == {"data": {"size": 9}}
    assert retrieve({"data": lambda: lambda: {7: "seven"}}, "data/7") == "seven"


@pytest.mark.parametrize("default", [0, "", False])
def test_defaults_may_be_nothing(default: object) -> None:
    assert retrieve({"a": 1}, "b", default=default) == default
