from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import models

from scripts import sample_fast as script
from scripts.sample_fast import main
from taming.sampling import pools, rejection
from taming.sampling.folder import RECORD, FolderWriter
from taming.sampling.plan import SamplingJob
from tests.kit.models import FIRST_STAGE, transformer_config
from tests.kit.runs import tiny_run

UNCONDITIONAL = transformer_config(cond_stage_config="__is_unconditional__")


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("logs") / "run")


def sample(run: Path, *flags: str, out: Path | None = None) -> None:
    main(["-r", str(run), "--device", "cpu", *(["-o", str(out)] if out else []), *flags])


def test_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("-n", "2", "--classes", "4,0,", "--batch_size", "3", "--seed", "5", "-k", "10")
    sample(run, *flags, out=tmp_path)
    root = tmp_path / "samples" / "top_k_10_temp_1.00_top_p_1.0" / "7"
    assert names(root) == ["0/000000.png", "0/000001.png", "4/000000.png", "4/000001.png"]
    with Image.open(root / "4" / "000001.png") as image:
        record = json.loads(image.info[RECORD])
        assert image.size == (8, 8)
    expected: dict[str, Any] = {"seed": 5, "top_k": 10, "temperature": 1.0, "top_p": 1.0}
    expected |= {"global_step": 7, "dtype": "torch.float32", "class": 4, "number": 1}
    expected |= {"guidance": 1.0, "guidance_schedule": "constant", "order": None, "steps": None}
    expected |= {"step_schedule": "cosine", "confidence_noise": 4.5}
    hashes = {record.pop("weights"), record.pop("config")}
    assert record == expected and all(len(text) == 16 for text in hashes)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"4 samples are in {root} (4 of them new)"


def test_int8_weights_are_other_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("-n", "1", "--classes", "1", "--weights", "raw,int8")
    sample(run, *flags, out=tmp_path)
    assert len(names(tmp_path)) == 1
    with pytest.raises(SystemExit, match="2"):
        sample(run, "-n", "2", "--classes", "1", out=tmp_path)
    assert "was sampled with other weights" in capsys.readouterr().err


def test_a_second_run_samples_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("-n", "3", "--classes", "1", "-t", "0.9", "-p", "0.95")
    sample(run, *flags, out=tmp_path)
    root = tmp_path / "samples" / "top_k_250_temp_0.90_top_p_0.95" / "7" / "1"
    files = {path: path.read_bytes() for path in sorted(root.iterdir())}
    assert len(files) == 3
    middle = root / "000001.png"
    middle.unlink()
    sample(run, *flags, "-n", "2", out=tmp_path)
    assert {path: path.read_bytes() for path in sorted(root.iterdir())} == files
    said = capsys.readouterr()
    assert "(1 of them new)" in said.out and "1/1" in said.err


def test_a_folder_knows_its_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another checkpoint of the same step, or another config, does not fill it up."""
    flags = ("-n", "1", "--classes", "1")
    sample(run, *flags, out=tmp_path / "out")
    other = Path(shutil.copytree(run, tmp_path / "other"))
    content = torch.load(other / "checkpoints" / "last.ckpt")
    trained = {**content["state_dict"], "loss.discriminator.main.0.bias": torch.ones(1)}
    torch.save({**content, "state_dict": trained}, other / "checkpoints" / "last.ckpt")
    sample(other, *flags, "model.base_learning_rate=1.0", out=tmp_path / "out")
    assert "(0 of them new)" in capsys.readouterr().out
    content["state_dict"]["transformer.ln_f.bias"][0] += 1e-6
    torch.save(content, other / "checkpoints" / "last.ckpt")
    for command, message in (
        ((other,), "was sampled with other weights (another checkpoint"),
        ((run, "model.params.pkeep=0"), "was sampled with another config of the model (by --base"),
    ):
        with pytest.raises(SystemExit, match="2"):
            sample(command[0], *flags, "-n", "2", *command[1:], out=tmp_path / "out")
        assert message in capsys.readouterr().err
    assert len(names(tmp_path / "out")) == 1


def test_unconditional_into_the_run(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", UNCONDITIONAL)
    sample(run, "-n", "3", "--precision", "bf16")
    root = run / "samples" / "top_k_250_temp_1.00_top_p_1.0" / "7"
    assert names(root) == ["000000.png", "000001.png", "000002.png"]


def test_in_bf16_a_folder_goes_on_with_its_batch_size(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", UNCONDITIONAL)
    flags = ("-n", "5", "--precision", "bf16", "--batch_size")
    sample(run, *flags, "3")
    root = run / "samples" / "top_k_250_temp_1.00_top_p_1.0" / "7"
    files = {path: path.read_bytes() for path in root.iterdir()}
    for path in sorted(files)[1::2]:
        path.unlink()
    sample(run, *flags, "25")
    assert {path: path.read_bytes() for path in root.iterdir()} == files
    with Image.open(min(files)) as image:
        assert json.loads(image.info[RECORD])["batch_size"] == 3


def test_overrides_reach_the_model(run: Path, tmp_path: Path) -> None:
    flags = ("-n", "1", "--classes", "0")
    sample(run, *flags, "model.params.pkeep=0.0", out=tmp_path / "a")
    sample(run, *flags, out=tmp_path / "b")
    at_once, in_order = (next((tmp_path / name).rglob("*.png")) for name in "ab")
    assert at_once.read_bytes() != in_order.read_bytes()


def test_what_takes_long_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run", UNCONDITIONAL)

    def sampled(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FolderWriter, "save", sampled)
        with pytest.raises(SystemExit):
            sample(run, "-n", "2", "--size", "8,12")
    said = capsys.readouterr()
    assert re.fullmatch(r"12 x 8 pixels are 24 tokens for each of 2 images: about .*\n", said.out)
    assert "interrupted; finished samples stay, and the same command goes on" in said.err
    sample(run, "-n", "2", "--size", "8,12")
    said = capsys.readouterr()
    assert said.out.startswith("12 x 8 pixels") and "48/48" in said.err and "token" in said.err
    for flags in (["--size", "8,12"], []):  # nothing to do, and no windows
        sample(run, "-n", "2", *flags)
        said = capsys.readouterr()
        assert "pixels are" not in said.out and ("image/s" in said.err) != bool(flags)


def test_flags_reach_the_job(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[SamplingJob] = []
    monkeypatch.setattr(script, "fill_folder", lambda folder, job: jobs.append(job) or 0)
    sample(run, "-n", "90", "--classes", "0", out=tmp_path)
    flags = ("--compile", "--batch_size", "3", "--seed", "4", "--precision", "bf16")
    sample(run, "-n", "90", *flags, out=tmp_path)
    first, second = jobs
    assert (first.batch_size, first.plan.compiled, first.plan.dtype) == (25, False, torch.float32)
    assert (second.batch_size, second.plan.compiled, second.plan.seed) == (3, True, 4)
    assert second.plan.dtype == torch.bfloat16 and second.labels == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "5"], "class 5 is out of range"),
        (["--classes", "cat"], "--classes: a list takes numbers such as 0,1,7, not 'cat'"),
        (["-k", "0"], "top_k must be at least 1"),
        (["-t", "0"], "must be above 0"),
        *(
            (
                ["-t", given],
                f"temperature must be above 0 and finite, not {shown} (0, the likeliest",
            )
            for given, shown in (("-1", "-1.0"), ("nan", "nan"), ("inf", "inf"), ("0", "0"))
        ),
        (["-p", "0"], "top_p must be"),
        (["-n", "0"], "--num_samples must be at least 1"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--batchsize", "2"], "--batchsize"),
        (["--device", "gpu"], "--device takes"),
        (["--precision", "half"], "--precision takes"),
        (["-n", "many"], "invalid int value"),
    ],
)
def test_one_sentence_for_wrong_flags(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["-r", str(run), "-n", "1", *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (run / "samples").exists()


def test_first_stage_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tiny_run(tmp_path / "run", FIRST_STAGE), tmp_path / "nothing"):
        with pytest.raises(SystemExit):
            main(["-r", str(path)])
    errors = capsys.readouterr().err.splitlines()
    assert "this is a first stage" in errors[0]
    assert "nothing" in errors[1]


def test_other_sizes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample(run, "-n", "1", "--classes", "2", "--height", "10", "--width", "12", out=tmp_path)
    (path,) = tmp_path.rglob("*.png")
    assert "top_k_250_temp_1.00_top_p_1.0_size_10x12" in str(path)
    with Image.open(path) as image:
        assert image.size == (12, 10)
    with pytest.raises(SystemExit):
        sample(run, "-n", "1", "--height", "9", out=tmp_path)
    assert "height must be a multiple of 2 pixels" in capsys.readouterr().err


def test_processes_share_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("-n", "3", "--classes", "0,1", "--batch_size", "2")
    sample(run, *flags, out=tmp_path / "alone")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        sample(run, *flags, out=tmp_path / "shared")
        assert f"process {rank} of 2 made 3 of 6" in capsys.readouterr().out
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert names(alone) == names(shared)
    for name in names(alone):
        assert (alone / name).read_bytes() == (shared / name).read_bytes()


def records(root: Path) -> dict[str, Any]:
    found = {}
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            name = f"{path.parent.name}/{path.stem}"
            found[name] = {**json.loads(image.info[RECORD]), "pixels": image.tobytes()}
    return found


def test_several_k(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("-n", "4", "--classes", "0,3", "-k", "1,2,30", "--seed", "5")
    sample(run, *flags, out=tmp_path)
    root = tmp_path / "samples" / "top_k_1-2-30_temp_1.00_top_p_1.0" / "7"
    files = {path: path.read_bytes() for path in root.rglob("*.png")}
    found = records(root)
    assert {record["own_top_k"] for record in found.values()} == {1, 2, 30}
    assert all(record["top_k"] == [1, 2, 30] for record in found.values())
    for k in (1, 2, 30):
        sample(run, *flags, "-k", str(k), out=tmp_path / "alone")
        alone = records(tmp_path / "alone" / "samples" / f"top_k_{k}_temp_1.00_top_p_1.0" / "7")
        for name in (name for name, record in found.items() if record["own_top_k"] == k):
            assert alone[name]["pixels"] == found[name]["pixels"]
            assert alone[name]["top_k"] == k and "own_top_k" not in alone[name]
    for path in list(files)[::2]:  # with others beside them in the batch, the same
        path.unlink()
    sample(run, *flags, "--batch_size", "3", out=tmp_path)
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == files
    with pytest.raises(SystemExit):
        sample(run, *flags, "-k", "1,0", out=tmp_path)
    assert "top_k must be at least 1, not 0" in capsys.readouterr().err


def test_rejection(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = models.get_model("squeezenet1_1", weights=None, num_classes=5)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    classifier = ("--classifier", f"squeezenet1_1:{tmp_path / 'own.pth'}")
    flags = ("-n", "3", "--classes", "1", *classifier, "--reject-ratio", "0.5")
    sample(run, *flags, out=tmp_path / "out")
    files = sorted((tmp_path / "out").rglob("*.png"))
    assert [path.name for path in files] == ["000000.png", "000001.png", "000002.png"]
    with Image.open(files[2]) as image:
        record = json.loads(image.info[RECORD])
    assert record["candidate"] in (4, 5)
    assert 0 < record["score"] < 1
    assert record["reject_ratio"] == 0.5 and record["classifier"] == classifier[1]
    other = {key: value + 1 for key, value in torch.load(tmp_path / "own.pth").items()}
    torch.save(other, tmp_path / "own.pth")
    with pytest.raises(SystemExit):
        sample(run, *flags, out=tmp_path / "out")
    assert "another content of the file of --classifier: choose" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sample(run, "-n", "1", *classifier)
    assert "needs both --reject_ratio below 1 and --classifier" in capsys.readouterr().err


def test_the_best_of_a_class(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rejection, "SCORED", 2)
    monkeypatch.setattr(pools, "SAVE_EVERY", 0)
    torch.manual_seed(0)
    network = models.get_model("squeezenet1_1", weights=None, num_classes=5)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    flags = ("--classes", "1,3", "--classifier", f"squeezenet1_1:{tmp_path / 'own.pth'}")
    flags += ("-k", "5,30", "--batch_size", "4")
    pool = ("-n", "2", "--reject_ratio", "0.4", "--reject_pool", "class")
    sample(run, *flags, *pool, out=tmp_path)
    assert "5/5" in capsys.readouterr().err.replace("10/10", "5/5")  # candidates
    root = tmp_path / "samples" / "top_k_5-30_temp_1.00_top_p_1.0_reject_0.4_best_2_of_5" / "7"
    best = records(root)
    assert sorted(best) == ["1/000000", "1/000001", "3/000000", "3/000001"]
    assert names(root) == [f"{name}.png" for name in sorted(best)]  # and nothing else is left
    assert not list(root.glob(".scores*"))
    # All candidates, each the best of one.
    sample(
        run, *flags, "-n", "5", "--reject_ratio", "0.999", "--reject_pool", "class", out=tmp_path
    )
    (folder,) = (tmp_path / "samples").glob("*_best_5_of_6")
    every = {(r["class"], r["candidate"]): r for r in records(folder / "7").values()}
    for label in (1, 3):
        of_class = [r for (c, n), r in every.items() if c == label and n < 5]
        ranked = sorted(of_class, key=lambda r: (-r["score"], r["candidate"]))
        for number, expected in enumerate(ranked[:2]):
            found = best[f"{label}/{number:06}"]
            assert found["pool"] == [2, 5] and found["reject_pool"] == "class"
            for key in ("candidate", "score", "own_top_k", "pixels"):
                assert found[key] == expected[key], key
    # What is missing is made again, the same; a pool of 5 of 5 has another name.
    (root / "3" / "000001.png").unlink()
    sample(run, *flags, *pool, out=tmp_path)
    assert records(root) == best
    for wrong, message in (("2", "so that none is kept; give at least 3"), ("some", "not 'some'")):
        with pytest.raises(SystemExit):
            sample(run, *flags, *pool, "--reject-pool", wrong, out=tmp_path)
        assert message in capsys.readouterr().err


def test_guidance(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = tiny_run(tmp_path / "run", transformer_config(cond_drop=0.1))
    sample(trained, "-n", "1", "--classes", "1", "--guidance", "2", "--guidance_schedule", "cosine")
    (path,) = trained.rglob("*.png")
    assert "guidance_2.0_cosine" in str(path)
    with pytest.raises(SystemExit):
        sample(run, "-n", "1", "--guidance", "2", out=tmp_path / "out")
    assert "trained with cond_drop" in capsys.readouterr().err
