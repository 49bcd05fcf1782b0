"""scripts/reproduce.py on small stand-ins: commands, what is missing, resumption, the table."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from scripts import reproduce as script
from scripts.reproduce import main
from taming.atomic_files import write_text
from taming.evaluation.presets import PRESETS, preset
from taming.evaluation.results import SECTIONS
from taming.evaluation.sources.run import RunSource
from taming.evaluation.tasks import reproduction as tasks
from taming.evaluation.tasks import time_ahead
from taming.evaluation.tasks.fidelity import flattened
from taming.evaluation.tasks.reproduction import (
    Reproduction,
    measured_numbers,
    result_in,
    rows,
)
from taming.sampling.plan import SamplingPlan
from tests.kit.models import FIRST_STAGE
from tests.kit.runs import tiny_run
from tests.kit.scenes import scene_run, write_scenes
from tests.kit.training import small_vqgan, write_config

TINY = ("--extractor", "tests.kit.extractor:TinyExtractor", "--device", "cpu")
NOISE = {"target": "tests.kit.datasets.Noise", "params": {"length": 3}}
SMALL = ("--", "-n", "6", "--classes", "1,3", "-k", "10", "--isc_splits", "2", *TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("data"), small_vqgan())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_run(tmp_path_factory.mktemp("logs") / "run"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(place: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((place / "reproduced" / "reproduced.json").read_text())
    return found


def test_a_number_is_measured_once(
    place: Path, run: str, data: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["cin_k250", "--model", f"cin_transformer={run}", "--data", f"cin_k250={data}"]
    main([*words, *SMALL])
    said = capsys.readouterr().out
    assert "sampling 12 images takes about" in said
    assert "extracting the features of the reference's 12 images takes about" in said
    assert "in all, about" in said
    assert said.rindex("takes about") < said.index("published isc.mean")
    fid, isc = lines(place)
    assert (fid["published"], fid["where"]) == ("15.98", "table 4, row 3")
    assert fid["measured"] > 0 and fid["spread"] > 0 and isc["measured"] > 1 <= isc["spread"] + 1
    assert "tests.kit.extractor:TinyExtractor" in fid["by"] and "12 images" in fid["by"]
    # What is not as published stands beside the number, whatever flags it is of.
    given = "num_samples 6, extractor tests.kit.extractor:TinyExtractor, top_k 10"
    assert fid["by"].endswith(f"12 images; not as published: {given}")
    assert ", split train, resize pillow-antialias, crop center, " in fid["by"]
    table = (place / "reproduced" / "reproduced.md").read_text()
    assert "| cin_k250 | fid " in " ".join(table.split()) and "drawn with replacement" in table
    # The same command has nothing to do; another setting is another result.
    monkeypatch.setattr(script, "load", lambda path: pytest.fail("evaluated again"))
    main([*words, *SMALL])
    assert "cin_k250 is in reproduced/cin_k250-" in capsys.readouterr().out
    assert lines(place) == [fid, isc]
    with pytest.raises(pytest.fail.Exception, match="evaluated again"):
        main([*words, *SMALL, "--seed", "3"])


def test_the_key_follows_the_checkpoint_and_the_data(place: Path, run: str, data: str) -> None:
    copied = shutil.copytree(run, place / "other")
    config = Path(shutil.copy(data, place / "data.yaml"))
    keys = {Reproduction(preset("cin_k250"), str(copied), str(config)).key}
    keys.add(Reproduction(preset("cin_k250"), str(copied), str(config), ("-n", "2")).key)
    keys.add(Reproduction(preset("cin_k973"), str(copied), str(config)).key)
    os.utime(copied / "checkpoints" / "last.ckpt", (1, 1))
    keys.add(Reproduction(preset("cin_k250"), str(copied), str(config)).key)
    config.write_text(config.read_text() + "# other\n")
    keys.add(Reproduction(preset("cin_k250"), str(copied), str(config)).key)
    assert len(keys) == 5


def test_another_classifier_needs_no_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    rejecting = next(each for each in PRESETS.values() if each.parameter("classifier"))

    def said(*extra: str) -> bool:
        return any("resnet101" in text for text in Reproduction(rejecting, extra=extra).missing())

    assert said() and said("--top_k", "5")
    assert not said("--classifier", "resnet18:own.pth") and not said("--classifier=resnet18:own")


def write_images(folder: Path, count: int = 4) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return paths


def config_of_images(place: Path, split: str = "validation") -> tuple[Path, Path]:
    """A config whose images are in a list, and the list."""
    paths, listed = write_images(place / "images"), place / "list.txt"
    listed.write_text("\n".join(map(str, paths)) + "\n")
    params = {"size": 8, "test_images_list_file": str(listed)}
    data = {"target": "taming.data.custom.CustomTest", "params": params}
    config = {"data": {"target": "main.DataModuleFromConfig", "params": {"batch_size": 2}}}
    config["data"]["params"][split] = data  # type: ignore[index]
    OmegaConf.save(OmegaConf.create(config), place / "images.yaml")
    return place / "images.yaml", listed


def test_the_key_follows_images_and_lists(place: Path, run: str) -> None:
    config, listed = config_of_images(place, "train")

    def key(*extra: str) -> str:
        return Reproduction(preset("cin_k250"), run, str(config), extra).key

    keys, first = [key()], place / "images" / "0.png"
    assert key() == keys[0]
    os.utime(first, ns=(1, 1))
    keys.append(key())
    status = first.stat()
    first.write_bytes(first.read_bytes() + b"more")
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    keys.append(key())
    (place / "images" / "1.png").rename(place / "images" / "9.png")
    listed.write_text(listed.read_text().replace("1.png", "9.png"))
    keys.append(key())
    listed.write_text(listed.read_text() + "\n")
    keys.append(key())
    assert len(set(keys)) == 5


def test_the_key_is_of_the_split_that_is_read(place: Path, run: str) -> None:
    config, _ = config_of_images(place)
    one = Reproduction(preset("cin_k250"), run, str(config))
    assert list(one.missing()) and "train data of" in next(one.missing())
    for flags in (("--split", "validation"), ("--split=validation",)):
        other = Reproduction(preset("cin_k250"), run, str(config), flags)
        assert not list(other.missing())
        key = other.key
        os.utime(place / "images" / "2.png", ns=(2, 2) if "=" in flags[0] else (3, 3))
        assert other.key != key


def test_data_may_be_those_of_the_run(place: Path) -> None:
    """Of presets without a YAML, as those of table 1 whose checkpoints are not published."""
    own = tiny_run(place / "own", validation=NOISE)
    assert not list(Reproduction(preset("nll_rin"), str(own)).missing())
    assert len(Reproduction(preset("nll_rin"), str(own)).key) == 8
    without = tiny_run(place / "without")
    (text,) = Reproduction(preset("nll_rin"), str(without)).missing()
    assert "without" in text
    (text,) = Reproduction(preset("nll_rin")).missing()
    assert "--model nll_rin=RUN" in text


def test_the_newest_result_counts(place: Path) -> None:
    folder = place / "results"
    for age, name in enumerate(("b", "a", "c")):
        result = {"metrics": {"fid": 10.0 + age}, **{key: {} for key in SECTIONS[1:]}}
        write_text(folder / f"fidelity-{name}.json", json.dumps(result))
        os.utime(folder / f"fidelity-{name}.json", (100 - age, 100 - age))
    found = result_in(folder)
    assert found is not None and found["metrics"] == {"fid": 10.0}


def test_first_stages_and_real_images(place: Path, data: str, capsys: Any) -> None:
    stage = str(tiny_run(place / "stage", FIRST_STAGE))
    names = ("rfid_vq_f8", "rfid_vqgan_1024_train")
    words = ["--model", f"vq_f8={stage}", "--model", f"rfid_vqgan_1024_train={stage}"]
    words += [word for name in names for word in ("--data", f"{name}={data}")]
    measured = {}
    doing = ("evaluating stage on 4 images", "reconstructing 4 images")
    for name, size, work in zip(names, ("--size", "--reference_size"), doing, strict=True):
        main([name, *words, "--", *TINY, "--batch_size", "4", size, "32"])
        said = capsys.readouterr().out
        assert said.index(f"{work} takes about") < said.index("published ")
        measured |= {(line["preset"], line["metric"]): line for line in lines(place)}
    assert set(measured) == {("rfid_vq_f8", "rfid"), ("rfid_vqgan_1024_train", "fid")}
    for line in measured.values():
        assert line["measured"] > 0 < line["spread"] and "4 images" in line["by"]
    name = "imagenet_validation"
    main([name, "--data", f"{name}={data}", "--", *TINY, "--isc_splits", "2"])
    said = capsys.readouterr().out
    for role, count in (("samples", 4), ("reference", 12)):
        assert f"extracting the features of the {role}'s {count} images takes about" in said
    fid, isc = lines(place)
    assert fid["measured"] > 0 < fid["spread"]
    assert isc["measured"] > 1 and isc["spread"] > 0


def test_a_number_that_was_left_out_is_measured_once_it_can_be(
    place: Path, data: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first stage is evaluated without Inception's weights as well, and that is no rFID."""
    stage = str(tiny_run(place / "stage", FIRST_STAGE))
    monkeypatch.setenv("TAMING_EXTRACTOR_WEIGHTS", str(place / "inception.pth"))
    words = ["rfid_vq_f8", "--model", f"vq_f8={stage}", "--data", f"rfid_vq_f8={data}", "--"]
    words += ["--size", "32", "--speed_rounds", "0", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main(words)
    reason = f"TAMING_EXTRACTOR_WEIGHTS: there is no file {place / 'inception.pth'}"
    assert f"rfid_vq_f8 could not be measured: {reason}" in capsys.readouterr().out
    (line,) = lines(place)
    assert line["measured"].startswith(reason)
    monkeypatch.setattr(script, "load", lambda path: pytest.fail("evaluated again"))
    with pytest.raises(pytest.fail.Exception, match="evaluated again"):
        main(words)


def test_likelihoods_and_scenes_say_how_long_they_take(place: Path, capsys: Any) -> None:
    small = {**NOISE, "params": {"length": 3, "size": 8}}
    own = tiny_run(place / "own", validation=small)
    main(["nll_rin", "--model", f"nll_rin={own}", "--", "--device", "cpu"])
    said = capsys.readouterr().out
    work = "evaluating the likelihood of 3 images takes about"
    assert said.index(work) < said.index("published nats_per_token") and "in all" not in said
    root = write_scenes(place / "scenes", 5)
    run = scene_run(root)
    (project,) = (run / "configs").glob("*-project.yaml")
    words = ["--model", f"coco_scene={run}", "--data", f"coco_scene={project}", "--"]
    main(["coco_scene", *words, "-n", "4", "-N", "2", "-R", "8,8", "--isc_splits", "2", *TINY])
    said = capsys.readouterr().out
    before = said[: said.index("samples_per_layout ")]
    assert "sampling 8 images takes about" in before
    assert "extracting the features of the reference's 4 images takes about" in before
    assert "in all, about" in before


def test_the_time_ahead_is_of_the_size_that_is_sampled(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []

    def estimated(*args: Any, count: int) -> float:
        shapes.append(args[4])
        return 1.0

    monkeypatch.setattr(time_ahead, "estimated_seconds", estimated)
    for size in (None, (16, 24)):
        time_ahead.part_of_sampling(RunSource(run, SamplingPlan(num_samples=1, size=size)), 2)
    assert shapes == [(4, 4), (8, 12)]


def test_the_time_ahead_is_that_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Set:
        def __len__(self) -> int:
            return 10

        def pass_over_damage(self) -> None:
            pass

        def batches(self, size: int, share: Any, skip: Any) -> Any:
            yield [number for number in range(10) if number not in skip]

    counted: list[int] = []

    def count(batch: Any) -> None:
        counted.append(len(batch))
        now[0] += 100 if len(counted) == 1 else 3 * len(batch)  # the first one warms up

    monkeypatch.setattr(time_ahead.time, "monotonic", lambda: now[0])
    source: Any = Set()
    part = time_ahead.part_of_pass("reading", source, count, 4)
    assert (part.images, part.seconds, counted) == (10, 36.0, [4, 4])  # three batches
    assert str(part).startswith("reading 10 images takes about ")
    monkeypatch.setattr(time_ahead, "own_share", lambda: (0, 2))
    assert time_ahead.part_of_pass("reading", source, count, 4).seconds == 24.0


def test_what_is_missing_is_said(
    place: Path, run: str, data: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ffhq", "rfid_two_levels", "cifar10_f2", "--data", f"rfid_two_levels={data}"])
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "fetch it with python scripts/download_models.py ffhq_transformer" in said.out
    assert "FFHQTrain: there is no folder data/ffhq" in said.out
    assert "train one, and name its run: --model rfid_two_levels=RUN" in said.out
    assert "is no single run: " in said.out
    assert said.err.strip() == "error: 3 of 3 presets were not measured"
    ffhq, two_levels, *cifar10 = [line["measured"] for line in lines(place)]
    assert ffhq == two_levels == "missing: model or data"
    assert all(text.startswith("no single run: a comparison of two") for text in cifar10)
    assert not any(entry.is_dir() for entry in (place / "reproduced").iterdir())
    monkeypatch.setenv("TORCH_HOME", str(place / "torch"))
    with pytest.raises(SystemExit):
        main(["cin_4", "--model", f"cin_transformer={run}", "--data", f"cin_mixed_k_a005={data}"])
    said = capsys.readouterr()
    fetch = r"fetch it with python -c .*resnet101\(weights='IMAGENET1K_V1'\)"
    assert re.search(rf"there is no .*resnet101-63fe2227\.pth; {fetch}", said.out)


def test_one_that_fails_does_not_stop_the_others(
    place: Path, run: str, data: str, capsys: Any
) -> None:
    names = ("cin_k973", "cin_k250")
    words = [word for name in names for word in ("--data", f"{name}={data}")]
    words += ["--model", f"cin_transformer={run}"]
    with pytest.raises(SystemExit):
        main([*names, *words, *SMALL, "--classes", "7"])
    said = capsys.readouterr()
    assert "class 7 is out of range" in said.out + said.err
    assert "error: 2 of 2 presets were not measured" in said.err


def test_all_counts_what_a_script_measures(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also presets of which no number is published, and not those that are no single run."""
    measurable = [entry for entry in PRESETS.values() if entry.script]
    assert 0 < len(measurable) < len(PRESETS)
    with pytest.raises(SystemExit) as stop:
        main(["--all"])
    assert stop.value.code == 1
    n = len(measurable)
    assert f"error: {n} of {n} presets were not measured" in capsys.readouterr().err
    found = lines(place)
    assert {line["preset"] for line in found} == set(PRESETS)
    (sflckr,) = [line for line in found if line["preset"] == "sflckr"]
    assert (sflckr["published"], sflckr["measured"]) == ("none", "missing: model or data")
    whole = dict.fromkeys(("fid", "rfid", "scene_fid", "nats_per_token"), 1.0)
    result = {"metrics": whole | {"isc": {"mean": 2.0}}, "protocol": {}, "sets": {}}
    monkeypatch.setattr(Reproduction, "missing", lambda self: iter(()))
    monkeypatch.setattr(Reproduction, "key", "0")
    monkeypatch.setattr(tasks, "measured_numbers", lambda *_: dict(flattened(result["metrics"])))
    monkeypatch.setattr(script, "result_in", lambda _: result)
    main(["--all"])  # exit code 0
    (fid,) = [x for x in lines(place) if x["preset"] == "sflckr" and x["metric"] == "fid"]
    assert (fid["published"], fid["measured"], fid["where"]) == ("none", 1.0, "")
    # One number of two that is not there is enough.
    del result["metrics"]["isc"]  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as stop:
        main(["cin_k250"])
    assert stop.value.code == 1
    assert "error: 1 of 1 presets were not measured" in capsys.readouterr().err
    main(["nll_in"])  # PixelSNAIL's numbers are of no model here


def test_earlier_names_are_those_of_models_and_data_too(place: Path, run: str, data: str) -> None:
    main(["cin_1", "cin_k250", "--model", f"cin_1={run}", "--data", f"cin_1={data}", *SMALL])
    assert [line["preset"] for line in lines(place)] == ["cin_k250", "cin_k250"]  # FID and IS, once


def test_the_list(capsys: Any) -> None:
    main(["--list"])
    said = capsys.readouterr().out
    assert all(f"| {name} |" in said for name in PRESETS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "name presets, or give --all"),
        (("ffhq", "--all"), "name presets, or give --all"),
        (("fhq",), "did you mean 'ffhq'"),
        (("ffhq", "--model", "logs/run"), "--model: give NAME=PATH, not 'logs/run'"),
        (("ffhq", "--model", "fhq=logs/run"), "there is no preset or published model 'fhq'"),
        (("ffhq", "--unknown"), "unknown argument --unknown"),
        (("ffhq", "-o", "data.txt"), "choose another --outdir"),
    ],
)
def test_one_sentence_for_wrong_flags(
    place: Path, flags: tuple[str, ...], message: str, capsys: Any
) -> None:
    (place / "data.txt").touch()
    with pytest.raises(SystemExit) as stop:
        main([*flags])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_spreads_and_names_of_scenes_and_likelihoods() -> None:
    scenes = {"fid": 41.0, "scene_fid": 14.0, "isc": {"mean": 18.0, "std": 0.2}}
    scenes |= {
        "one_per_layout": {n: {"mean": 1.0, "std": 0.1} for n in ("fid", "scene_fid", "isc")}
    }
    result: dict[str, Any] = {"metrics": scenes, "protocol": {}, "sets": {}}
    found = rows(preset("oi_scene_1b"), result)
    assert [(r["metric"], r["measured"], r["spread"]) for r in found] == [
        ("fid", 41.0, 0.1),
        ("scene_fid", 14.0, 0.1),
        ("isc.mean", 18.0, 0.1),
    ]
    result = {"metrics": {"nats_per_token": 5.0}, "protocol": {}, "sets": {}}
    own, steps, time = rows(preset("nll_rin"), result)
    assert (own["measured"], own["spread"]) == (5.0, None)
    assert steps["measured"] == time["measured"] == "not measured here"
    one = {"metrics": {"run": {"rfid": 3.0}}}
    assert measured_numbers(preset("rfid_vq_f8"), one) == {"rfid": 3.0}


def test_a_list_is_of_all() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--list", "cin_k250"])
    assert stop.value.code == 2
