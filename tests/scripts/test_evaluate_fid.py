from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from scripts.compute_statistics import main as compute_statistics
from scripts.evaluate_fid import Job, main
from scripts.evaluate_first_stage import main as first_stage
from taming.errors import UserError
from taming.evaluation.results import read_result
from taming.evaluation.tasks.fidelity import flattened
from taming.pictures import HEAD
from tests.kit.images import image_classes, image_folder, truncate
from tests.kit.models import FIRST_STAGE
from tests.kit.processes import exit_codes_of_two
from tests.kit.runs import tiny_run
from tests.kit.training import small_vqgan, write_config

TINY = ("--extractor", "tests.kit.extractor:TinyExtractor", "--device", "cpu")
SMALL = ("--isc_splits", "2", "--kid_subsets", "5", "--kid_subset_size", "4", "--batch_size", "4")


@pytest.fixture(autouse=True)
def kept(cache: Path) -> Path:
    """The folder of the features that are kept."""
    return cache / "taming" / "evaluation"


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("sets")
    samples = image_classes(root / "a", {"0": 4, "2": 5})
    return str(samples), str(image_classes(root / "b", {"0": 6, "2": 6}, seed=300))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_run(tmp_path_factory.mktemp("logs") / "run"))


def evaluate(out: Path, *flags: str) -> dict[str, Any]:
    """The result that was written to `out`."""
    main([*flags, *TINY, "-o", str(out)])
    (path,) = out.glob("*.json")
    return read_result(path)


def fails(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_folders(
    classes: tuple[str, str], tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--metrics", "fid,isc,kid,prc", *SMALL, "--per_class", "--neighbors", "2")
    found = evaluate(out, *classes, *flags)
    assert set(found["metrics"]) == {
        *("fid", "isc", "kid", "prc", "mean_fid_of_classes", "fid_of_class")
    }
    assert set(found["metrics"]["fid_of_class"]) == {"0", "2"}
    assert found["command"][:3] == ["scripts/evaluate_fid.py", *classes]
    assert found["sets"]["samples"]["images"] == 9
    (path,) = out.glob("*.json")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{path.name} and {path.stem}.md are in {out}"
    assert "| class |" in path.with_suffix(".md").read_text()
    with Image.open(out / f"{path.stem}-neighbours.png") as picture:
        rows = np.asarray(picture)
    # Eight rows of images, enlarged from 12 to 120 pixels, of which the nearest two stand apart.
    assert rows.shape == (HEAD + 8 + 8 * 128, 8 + 120 + 16 + 2 * 128, 3)
    with Image.open(out / f"{path.stem}-classes.png") as picture:
        assert picture.size[0] > 300
    assert list(kept.glob("*.npz"))
    assert not list(kept.glob("*partial*"))


def test_neighbors_are_the_nearest(tmp_path: Path) -> None:
    image_folder(tmp_path / "a", 3)
    image_folder(tmp_path / "b", 5, seed=250)
    for n in range(3):  # the samples are among the reference, last of all
        (tmp_path / "b" / f"z{n}.png").write_bytes((tmp_path / "a" / f"{n:03}.png").read_bytes())
    evaluate(tmp_path / "out", str(tmp_path / "a"), str(tmp_path / "b"), "--neighbours", "1")
    (path,) = (tmp_path / "out").glob("*-neighbours.png")
    with Image.open(path) as picture:
        rows = np.asarray(picture)[HEAD:]
    np.testing.assert_array_equal(rows[:, 8:128], rows[:, -128:-8])
    assert rows[:, 8:128].std() > 10


def test_run_against_a_config(run: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, small_vqgan())
    flags = ("-n", "2", "--classes", "0,3", "-k", "10", "--split", "train", "--seed", "4")
    found = evaluate(tmp_path / "out", run, config, *flags)
    sampler = found["sets"]["samples"]["sampler"]
    assert (sampler["top_k"], sampler["seed"], sampler["num_samples"]) == (10, 4, 2)
    assert len(found["sets"]["samples"]["checkpoint_hash"]) == 64
    assert found["sets"]["samples"]["images"] == 4
    assert found["sets"]["reference"]["images"] == 12
    assert found["sets"]["reference"]["split"] == "train"
    assert found["metrics"]["fid"] > 0


def test_results_of_a_run_are_beside_it(run: str, classes: tuple[str, str]) -> None:
    main([run, classes[1], "-n", "2", "--classes", "1", *TINY])
    assert len(list((Path(run) / "evaluation").glob("fidelity-*.json"))) == 1


def test_statistics(classes: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    file = str(tmp_path / "b.npz")
    compute_statistics([classes[1], file, *TINY])
    assert f"the statistics of 12 images are in {file}" in capsys.readouterr().out
    by_file = evaluate(tmp_path / "out", classes[0], file)
    by_images = evaluate(tmp_path / "images", *classes)
    assert by_file["metrics"]["fid"] == pytest.approx(by_images["metrics"]["fid"], rel=1e-6)
    sets = by_file["sets"], by_images["sets"]
    assert sets[0]["reference"]["fingerprint"] == sets[1]["reference"]["fingerprint"]
    # The same of another layer, and of images that are needed themselves.
    logits = fails(capsys, classes[0], file, *TINY, "--layer", "fid=logits")
    assert file in logits and "of another extractor" in logits
    assert "kid needs the images" in fails(capsys, classes[0], file, *TINY, "--metrics", "kid")
    with pytest.raises(SystemExit):
        compute_statistics([file, file, *TINY])
    assert "holds statistics already" in capsys.readouterr().err
    for output in ("", ".", classes[0]):  # before anything is computed
        with pytest.raises(SystemExit):
            compute_statistics([classes[1], output, *TINY])
        assert "is a folder; name a file in it" in capsys.readouterr().err


def test_sweep(run: str, classes: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("-n", "3", "--classes", "1", "--sweep", "top_k=2,20; temperature=0.5,1")
    found = evaluate(out, run, classes[1], *flags)
    names = [f"top_k={k}, temperature={t}" for k in (2, 20) for t in ("0.5", "1")]
    assert list(found["metrics"]) == names
    assert len({values["fid"] for values in found["metrics"].values()}) == 4
    assert found["sets"][f"samples {names[0]}"]["sampler"]["top_k"] == 2
    (path,) = out.glob("*.json")
    assert path.with_suffix(".png").stat().st_size > 5000
    assert "| top_k | temperature |" in path.with_suffix(".md").read_text()
    alone = ("-n", "3", "--classes", "1", "-k", "20", "-t", "0.5")
    single = evaluate(tmp_path / "single", run, classes[1], *alone)
    expected = found["metrics"]["top_k=20, temperature=0.5"]["fid"]
    assert single["metrics"]["fid"] == pytest.approx(expected, rel=1e-9)


def test_without_matplotlib_pictures_alone_are_missing(
    run: str, classes: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    swept = ("-n", "2", "--classes", "1", "--sweep", "top_k=2,20")
    assert len(evaluate(tmp_path / "sweep", run, classes[1], *swept)["metrics"]) == 2
    assert evaluate(tmp_path / "classes", *classes, "--per_class")["metrics"]["fid_of_class"]
    assert not list(tmp_path.rglob("*.png"))


def test_a_sweep_is_refused_before_anything_is_sampled(
    run: str,
    classes: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("taming.sampling.plan.sample_images", lambda *_, **__: pytest.fail("late"))
    flags = (run, classes[1], "-n", "2", *TINY, "-o", str(tmp_path / "out"))
    assert "leave guidance at 1" in fails(capsys, *flags, "--sweep", "guidance=1,2")
    rejecting = (*flags, "--classifier", f"resnet18:{tmp_path / 'no.pth'}")
    assert "no.pth" in fails(capsys, *rejecting, "--sweep", "acceptance=1,0.5")


def test_a_sweep_over_temperature_and_acceptance(
    run: str, classes: tuple[str, str], tmp_path: Path
) -> None:
    """The accepted samples are those of the command for one acceptance alone."""
    torch.manual_seed(0)
    torch.save(squeezenet1_1().state_dict(), tmp_path / "own.pth")
    rejecting = ("--classifier", f"squeezenet1_1:{tmp_path / 'own.pth'}", "--reject_pool", "class")
    flags = ("-n", "2", "--classes", "1", "--metrics", "fid,isc", "--isc_splits", "1", *rejecting)
    out = tmp_path / "out"
    found = evaluate(out, run, classes[1], *flags, "--sweep", "acceptance=1,0.5;temperature=0.5")
    names = [f"acceptance={share}, temperature=0.5" for share in ("1", "0.5")]
    assert list(found["metrics"]) == names
    samplers = [found["sets"][f"samples {name}"]["sampler"] for name in names]
    assert [sampler["reject_ratio"] for sampler in samplers] == [1, 0.5]
    assert [sampler["classifier"] is None for sampler in samplers] == [True, False]
    alone = (*flags, "--reject_ratio", "0.5", "-t", "0.5")
    single = evaluate(tmp_path / "single", run, classes[1], *alone)
    assert single["metrics"]["fid"] == pytest.approx(found["metrics"][names[1]]["fid"], rel=1e-9)
    assert found["metrics"][names[0]]["fid"] != found["metrics"][names[1]]["fid"]


def test_reproduced_or_not(tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = image_folder(tmp_path / "a", 6), image_folder(tmp_path / "b", 8, seed=100)
    evaluate(tmp_path / "out", str(a), str(b))
    for path in kept.iterdir():
        path.unlink()
    (path,) = (tmp_path / "out").glob("*.json")
    main(["--reproduce", str(path)])
    assert not list(kept.glob("*"))  # all of it was computed
    assert f"{path} is reproduced within 0.001: fid" in capsys.readouterr().out
    image_folder(b, 8, seed=200)
    with pytest.raises(SystemExit) as stop:
        main(["--reproduce", str(path)])
    assert stop.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{path} is not reproduced: fid was ")
    assert last.endswith("the reference are other images")
    assert len(list((tmp_path / "out").glob("*.json"))) == 1
    main(["--reproduce", str(path), "--tolerance", "1e6"])
    changed = json.loads(path.read_text()) | {"command": ["scripts/evaluate_first_stage.py"]}
    path.write_text(json.dumps(changed))
    assert "is a result of scripts/evaluate_first_stage.py" in fails(
        capsys, "--reproduce", str(path)
    )


def test_preset(run: str, classes: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    flags = ("--preset", "cin_1", "--classes", "1", "-n", "3", "--isc_splits", "2")
    found = evaluate(tmp_path / "out", run, classes[1], *flags)
    sampler = found["sets"]["samples"]["sampler"]
    assert (sampler["num_samples"], sampler["top_k"]) == (3, 250)  # its own, and the preset's
    assert set(found["metrics"]) == {"fid", "isc"} and found["preset"]["name"] == "cin_k250"
    said = capsys.readouterr().out
    assert re.search(r"^top_k +250 \(table 4, row 3\)$", said, re.MULTILINE)
    assert re.search(r"^published isc.mean +78.6 \+- 1.1 \(table 4, row 3\)$", said, re.MULTILINE)
    (path,) = (tmp_path / "out").glob("*.md")
    assert re.search(r"\| seed +\| not published +\|", path.read_text())
    assert "scripts/evaluate_first_stage.py" in fails(capsys, "a", "b", "--preset", "rfid_vq_f8")


def test_splits_and_reconstructions(tmp_path: Path, capsys: Any) -> None:
    config = write_config(tmp_path, small_vqgan())
    found = evaluate(
        tmp_path / "a", config, config, "--split", "train", "--samples_split", "validation"
    )
    assert [found["sets"][name]["split"] for name in ("samples", "reference")] == [
        "validation",
        "train",
    ]
    stage = str(tiny_run(tmp_path / "stage", FIRST_STAGE))
    flags = (stage, config, "--split", "train", "--reconstruct", "validation")
    found = evaluate(tmp_path / "b", *flags)
    samples = found["sets"]["samples"]
    assert samples["kind"] == "reconstructions" and samples["of"]["split"] == "validation"
    assert found["sets"]["reference"]["split"] == "train"
    # What scripts/evaluate_first_stage.py has of the same images against themselves.
    itself = evaluate(tmp_path / "c", stage, config, "--reconstruct", "validation")
    first_stage(["-r", stage, "--data", config, *TINY, "-o", str(tmp_path / "d")])
    (path,) = (tmp_path / "d").rglob("first_stages.json")
    (numbers,) = read_result(path)["metrics"].values()
    assert itself["metrics"]["fid"] == pytest.approx(numbers["rfid"], rel=1e-6)
    assert "takes the images of a REFERENCE's config" in fails(capsys, stage, "--reconstruct", "x")


@pytest.mark.parametrize("kind", ["folder", "config"])
def test_reconstructions_without_a_damaged_image(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flags for the model hold, and the config takes its list of images from the run."""
    folder, whole = (image_folder(tmp_path / name, 8) for name in ("damaged", "whole"))
    lists = {"size": 8, "test_images_list_file": str(tmp_path / "list.txt")}
    files = sorted(map(str, folder.iterdir()))
    (tmp_path / "list.txt").write_text("\n".join(files))
    truncate(files[2])
    (whole / Path(files[2]).name).unlink()
    dataset = {"target": "taming.data.custom.CustomTest", "params": lists}
    stage = str(tiny_run(tmp_path / "stage", FIRST_STAGE, validation=dataset))
    open_list = {**dataset, "params": {"size": 8, "test_images_list_file": "???"}}
    named = {"data": {"params": {"validation": open_list}}}
    (tmp_path / "model.yaml").write_text('{"model": {"params": {"embed_dim": 6}}}')
    (tmp_path / "data.yaml").write_text(json.dumps(named))
    config = str(tmp_path / "data.yaml") if kind == "config" else str(folder)
    other = {"n_embed": "model.params.n_embed=7", "embed_dim": f"--base={tmp_path}/model.yaml"}
    for what, flag in other.items():
        with pytest.raises(UserError, match=f"does not fit the config: {what} is "):
            Job([stage, config, "--reconstruct", "validation", *TINY, flag])
    with pytest.raises(SystemExit) as stop:
        evaluate(tmp_path / "out", stage, config, "--reconstruct", "validation")
    assert stop.value.code == 1
    errors = capsys.readouterr().err
    assert errors.count("left out: ") == 1 and files[2] in errors
    assert "error: 1 image could not be used" in errors.splitlines()[-1]
    (path,) = (tmp_path / "out").glob("*.json")
    found = read_result(path)
    assert [found["sets"][name]["images"] for name in ("samples", "reference")] == [7, 7]
    if kind == "folder":
        seven = evaluate(tmp_path / "seven", stage, str(whole), "--reconstruct", "validation")
        assert found["metrics"] == seven["metrics"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give SAMPLES and REFERENCE"),
        (("A",), "give a REFERENCE"),
        (("A", "nowhere"), "there is no nowhere"),
        (("A", "B", "C"), "unknown argument C"),
        (("A", "B", "--metric", "fdi"), "no metric 'fdi'"),
        (("A", "B", "--unknown", "1"), "unknown argument --unknown"),
        (("A", "B", "--layer", "fid"), "--layer: give METRIC=LAYER"),
        (("A", "B", "--layer", "fid=77"), "has no layer 77"),
        (("A", "B", "--sweep", "top_k=1"), "A is none"),
        (("A", "B", "--sweep", "topk=1"), "did you mean 'top_k'"),
        (("A", "B", "--sweep", "top_k=one"), "takes numbers"),
        (("A", "B", "--sweep", "acceptance=0.5"), "acceptance= needs --classifier"),
        (("A", "B", "--sweep", "top_k=1", "--per_class"), "goes without --per_class"),
        (("A", "B", "--sweep", "top_k=1", "--neighbors", "2"), "and --neighbors"),
        (("A", "B", "--neighbors", "-1"), "--neighbors must be at least 1, not -1"),
        (("A", "B", "--precision", "fp8"), "--precision takes fp32, bf16 or auto, not 'fp8'"),
        (("A", "B", "--batch_size", "0"), "--batch_size must be at least 1"),
        (("A", "B", "--extractor", "nowhere:Class"), "No module named 'nowhere'"),
        (("A", "B", "--extractor", "taming.errors:UserError"), "is no subclass"),
        (("A", "B", "--extractor", "inceptoin"), "no feature extractor inceptoin"),
        (("STAGE", "B"), "is a first stage"),
        (("--reproduce", "nowhere.json"), "cannot be read"),
    ],
)
def test_one_sentence(
    tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"A": image_folder(tmp_path / "A", 2), "B": image_folder(tmp_path / "B", 2)}
    if "STAGE" in flags:
        places["STAGE"] = tiny_run(tmp_path / "STAGE", FIRST_STAGE)
    words = [str(places.get(word, word)) for word in flags]
    extractor = () if "--extractor" in flags else TINY
    assert message in fails(capsys, *words, *extractor)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in flattened(expected["metrics"]):
        assert dict(flattened(found["metrics"]))[name] == pytest.approx(value, rel=1e-5, abs=1e-6)
    for role in ("samples", "reference"):
        assert found["sets"][role]["fingerprint"] == expected["sets"][role]["fingerprint"]


@pytest.mark.parametrize("drawn", [False, True])
def test_two_processes(run: str, classes: tuple[str, str], tmp_path: Path, drawn: bool) -> None:
    samples = [run, "-n", "5", "--classes", "0,2"] if drawn else [classes[0]]
    flags = [*samples, classes[1], "--metrics", "fid,isc,kid,prc", *SMALL, "--per_class"]
    alone = evaluate(tmp_path / "alone", *flags, "--no_cache")
    assert exit_codes_of_two(main, [*flags, *TINY, "-o", str(tmp_path / "two")]) == [0, 0]
    (path,) = (tmp_path / "two").glob("*.json")
    found = read_result(path)
    assert found["hardware"]["processes"] == 2
    assert_same(found, alone)


def test_two_killed_processes_are_continued_by_one(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = image_folder(tmp_path / "a", 30), image_folder(tmp_path / "b", 20, seed=100)
    sets = [str(a), str(b), "--metrics", "fid,kid", *SMALL, "--save_every", "0"]
    argv = [*sets, "--extractor", "tests.kit.extractor:FatalExtractor", "--device", "cpu"]
    log = tmp_path / "log.txt"
    kill = {"TINY_LOG": str(log), "TINY_KILL_AT": "20"}  # each has 10 of b, then 15 of a
    codes = exit_codes_of_two(main, [*argv, "-o", str(tmp_path / "two")], **kill)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL]
    assert len(list(kept.glob("*.partial.*.npz"))) == 2
    log.unlink()
    monkeypatch.setenv("TINY_LOG", str(log))
    main([*argv, "-o", str(tmp_path / "out")])
    assert sum(map(int, log.read_text().split())) == 30 - 2 * 8
    assert not list(kept.glob("*.partial.*.npz"))
    found = read_result(next((tmp_path / "out").glob("*.json")))
    assert_same(found, evaluate(tmp_path / "alone", *sets, "--no_cache"))


def test_damaged_images_are_left_out_and_named(
    tmp_path: Path, classes: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers are those of the folders without them; a second run finds them in the cache."""
    samples, reference = image_folder(tmp_path / "a", 7), image_folder(tmp_path / "b", 8, seed=300)
    flags = ("--metrics", "fid,isc,kid", *SMALL)
    whole = evaluate(tmp_path / "whole", str(samples), str(reference), *flags)
    (samples / "003a.png").write_bytes(b"")
    (reference / "000a.png").write_bytes(b"no image")
    for attempt in ("first", "second"):
        with pytest.raises(SystemExit) as stop:
            evaluate(tmp_path / attempt, str(samples), str(reference), *flags)
        assert stop.value.code == 1
        errors = capsys.readouterr().err
        assert f"left out: {samples}/003a.png is empty" in errors
        assert f"left out: {reference}/000a.png is no image" in errors
        assert "error: 2 images could not be used" in errors.splitlines()[-1]
        (path,) = (tmp_path / attempt).glob("*.json")
        found = read_result(path)
        assert found["metrics"] == whole["metrics"]
        assert found["sets"]["samples"]["fingerprint"] == whole["sets"]["samples"]["fingerprint"]


def test_statistics_of_a_folder_with_damaged_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder(tmp_path / "a", 6)
    (folder / "bad.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        compute_statistics([str(folder), str(tmp_path / "a.npz"), *TINY])
    output = capsys.readouterr()
    assert stop.value.code == 1 and "the statistics of 6 images" in output.out
    assert "bad.png is empty" in output.err
    for path in folder.glob("0*.png"):
        path.unlink()
    with pytest.raises(SystemExit) as stop:
        compute_statistics([str(folder), str(tmp_path / "b.npz"), *TINY])
    assert stop.value.code == 2
    assert "none of the images can be used; " in capsys.readouterr().err
