"""The notebooks, run from the first cell to the last on models of a few thousand weights.

Their first cell of code finds or installs the package; what they show is stored in them, and small.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from taming.published_models import published_models
from tests.kit.models import FIRST_STAGE, transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import SEGMENTED, write_data
from tests.scripts.test_make_scene_samples import SCENES, write_scenes
from tests.support import ROOT

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted((ROOT / "scripts").glob("*.ipynb"))
TRANSFORMER, RECONSTRUCTION = "taming-transformers", "reconstruction_usage"
CONDITIONS, SCENE, COMPLETION = "conditions", "scenes", "completion"
TRAINING = "train_first_stage"
NAMES = [COMPLETION, CONDITIONS, RECONSTRUCTION, SCENE, TRANSFORMER, TRAINING]
MOST_BYTES = 300_000


def read(name: str) -> Any:
    return nbformat.read(ROOT / "scripts" / f"{name}.ipynb", as_version=4)


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def add_data(run: Path, data: Path) -> Path:
    """The run, with the data section of a YAML in its config."""
    (config,) = (run / "configs").iterdir()
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(config), OmegaConf.load(data)), config)
    return run


def execute(name: str) -> tuple[str, list[bytes]]:
    """What a notebook prints, and the pictures it shows, when a kernel runs it."""
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = read(name)
    client.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "scripts")}}
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.output_type == "error"]
    text = "".join(out.text for out in outputs if out.output_type == "stream")
    pictures = [out.data for out in outputs if out.output_type == "display_data"]
    return text, [data["image/png"] for data in pictures if "image/png" in data]


def test_there_is_one_for_each_task() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_their_outputs_are_stored_and_small(path: Path) -> None:
    text = path.read_text()
    content = json.loads(text)
    assert len(text) < MOST_BYTES
    kinds = [out["output_type"] for cell in content["cells"] for out in cell.get("outputs", [])]
    assert {"stream", "display_data"} <= set(kinds) and "error" not in kinds
    said = "".join("".join(cell["source"]) for cell in content["cells"])
    assert not re.search(r"make demo|scripts/\w+\.py", said)  # which an installation has not
    assert "/tmp/" not in text and "/home/" not in text and "/root/" not in text
    for cell in content["cells"]:
        assert cell.get("execution_count") is None and not cell["metadata"]
        for out in cell.get("outputs", []):
            assert out.get("name") != "stderr"
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    nbformat.validate(nbformat.read(path, as_version=4))


def test_all_begin_with_the_same_cell_but_for_what_is_beside_the_package() -> None:
    rest, beside = set(), {}
    for name in NAMES:
        (first, *cells) = code_of(read(name))
        ((line, found),) = re.findall(r"^(BESIDE = (\{.*\})).*$", first, re.MULTILINE)
        rest.add(first.replace(line, ""))
        beside[name] = set(json.loads(found))
        used = {"sklearn": "_digits_" in "".join(cells), "matplotlib": '"curves"' in "".join(cells)}
        assert beside[name] == {module for module in used if used[module]}, name
    assert len(rest) == 1 and beside[TRAINING] and beside[TRANSFORMER] and not beside[SCENE]


def begin(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *missing: str,
    name: str = TRANSFORMER,
) -> list[list[str]]:
    """Run the first cell in a folder, where such modules are `missing`; the commands that it
    starts, which are not run."""
    commands: list[list[str]] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("subprocess.run", lambda words, **_: commands.append(words))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else name)
    exec(code_of(read(name))[0], {})
    return commands


def test_the_first_cell_installs_nothing_in_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin(ROOT / "scripts", monkeypatch) == []
    assert Path.cwd() == ROOT and sys.path[0] == str(ROOT)


def test_the_first_cell_installs_nothing_where_the_package_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it take the original's clone for one of this package."""
    before = sys.path[0]
    (tmp_path / "original" / "taming" / "models").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "original"):
        assert begin(folder, monkeypatch) == []
        assert Path.cwd() == folder and sys.path[0] == before


def test_the_first_cell_installs_what_a_plain_installation_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ("sklearn", "matplotlib")
    for name, package in ((TRANSFORMER, "scikit-learn"), (TRAINING, "matplotlib")):
        for folder in (tmp_path, ROOT):
            ((*_, quiet, what),) = begin(folder, monkeypatch, *gone, name=name)
            assert (quiet, what) == ("--quiet", package)
    assert begin(tmp_path, monkeypatch, *gone, name=SCENE) == []


def test_the_first_cell_installs_the_package_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Colab: what is named, or the clone that was uploaded or made there."""
    with pytest.raises(SystemExit, match="set SOURCE above to where it is"):
        begin(tmp_path, monkeypatch, "taming", "sklearn")
    monkeypatch.setenv("TAMING_SOURCE", "git+https://example.org/taming")
    ((*_, what),) = begin(tmp_path, monkeypatch, "taming", "sklearn")
    assert what == "taming-transformers[data,eval] @ git+https://example.org/taming"
    (tmp_path / "clone" / "taming").mkdir(parents=True)
    (tmp_path / "clone" / "taming" / "program.py").touch()
    ((*words, what),) = begin(tmp_path, monkeypatch, "lpips")
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    assert what == f"{tmp_path / 'clone'}[data,eval]" and Path.cwd() == tmp_path / "clone"


@pytest.mark.slow
def test_sampling_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_data(tiny_run(tmp_path / "tiny"), write_data(tmp_path / "data.yaml"))
    monkeypatch.setenv("TAMING_RUN", str(run))
    monkeypatch.setenv("TAMING_DEVICE", "cpu")
    text, pictures = execute(TRANSFORMER)
    assert "tiny, after 7 steps, on cpu" in text
    assert 0 < float(re.findall(r"PSNR ([0-9.]+) dB", text)[0]) < 40
    assert re.search(r"[1-9][0-9]*% of the 20 codes occur in these 3 images", text)
    assert "8 x 8 codes, torch.Size([16, 16]) pixels" in text
    assert len(pictures) >= 7


# Of several indices a position, of tables of their own, and of scales that share one.
LEVELS: tuple[dict[str, Any], ...] = (
    {
        "n_embed": None,
        "embed_dim": None,
        "quantizer_config": {
            "target": "taming.modules.vqvae.residual.ResidualQuantizer",
            "params": {"n_codes": 5, "e_dim": 4, "levels": 2},
        },
    },
    {
        "n_embed": None,
        "embed_dim": None,
        "quantizer_config": {
            "target": "taming.modules.vqvae.multi_scale.MultiScaleQuantizer",
            "params": {"n_e": 4, "e_dim": 4, "scales": [1, 3, 4]},
        },
    },
)


@pytest.mark.slow
def test_reconstruction_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    smaller = {**FIRST_STAGE, "params": {**FIRST_STAGE["params"], "n_embed": 6}}
    several = [{**FIRST_STAGE, "params": {**FIRST_STAGE["params"], **one}} for one in LEVELS]
    runs = [tiny_run(tmp_path / "a", smaller), tiny_run(tmp_path / "b")]
    runs += [tiny_run(tmp_path / name, one) for name, one in zip("cd", several, strict=True)]
    monkeypatch.setenv("TAMING_RUNS", ", ".join(map(str, runs)))
    monkeypatch.setenv("TAMING_IMAGES", str(tmp_path))
    monkeypatch.setenv("TAMING_SIZE", "13")
    monkeypatch.setenv("TAMING_DEVICE", "cpu")
    text, pictures = execute(RECONSTRUCTION)
    assert "3 images, the first of 12 x 12 pixels" in text
    scores = re.findall(
        r"^(\w): L1 ([0-9.]+), PSNR (-?[0-9.]+) dB, usage ([0-9.]+)%", text, re.MULTILINE
    )
    assert [score[0] for score in scores] == ["a", "b", "c", "d"]
    assert all(0 < float(l1) < 2 and 0 < float(usage) <= 100 for _, l1, _, usage in scores)
    counts = re.findall(r"(\w): (\d+) of (\d+) codes occur", text)
    assert [(name, total) for name, _, total in counts] == [
        *(("a", "6"), ("b", "20"), ("c", "10"), ("d", "4"))
    ]
    assert float(scores[0][3]) == pytest.approx(100 * int(counts[0][1]) / 6, abs=0.06)
    assert len(pictures) == 8


KINDS: dict[str, dict[str, Any]] = {
    "map": SEGMENTED,
    "none": {"cond_stage_config": "__is_unconditional__"},
    "scenes": SCENES,
}


@pytest.mark.parametrize("kind", [*KINDS, "class without data"])
def test_sampling_for_every_kind_of_condition(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("IPython")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = tiny_run(tmp_path / "run", transformer_config(**KINDS.get(kind, {})))
    if kind in KINDS:
        scenes = kind == "scenes"
        add_data(run, write_scenes(tmp_path) if scenes else write_data(tmp_path / "data.yaml"))
    Image.effect_noise((40, 30), 80).save(tmp_path / "noise.png")
    monkeypatch.setenv("TAMING_RUN", str(run))
    monkeypatch.setenv("TAMING_IMAGES", str(tmp_path))
    monkeypatch.setenv("TAMING_DEVICE", "cpu")
    names: dict[str, Any] = {}
    for source in code_of(read(TRANSFORMER)):
        exec(source, names)
    assert names["sample"].image.shape == (3, *(2 * side for side in names["alike"][0].x.shape[2:]))
    assert len(names["recorder"].frames) > 10
    first = names["known"] >= 0
    assert 0 < int(first.sum()) < first.numel()
    assert "PSNR" in capsys.readouterr().out


def test_the_demos_runs_are_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from taming.errors import UserError

    pytest.importorskip("IPython")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for variable in ("TAMING_RUN", "TAMING_RUNS", "TAMING_IMAGES"):
        monkeypatch.delenv(variable, raising=False)
    for name in (TRANSFORMER, RECONSTRUCTION):
        with pytest.raises(UserError, match="logs/ has no run of the demo; run `taming digits`"):
            exec("\n".join(code_of(read(name))[:3]), {})
    data = write_data(tmp_path / "data.yaml")
    for day in (1, 2):
        add_data(tiny_run(tmp_path / f"logs/2026-01-0{day}_digits_transformer"), data)
    stage = tiny_run(tmp_path / "logs/2026-01-01_digits_vqgan", FIRST_STAGE) / "checkpoints"
    early = torch.load(stage / "last.ckpt", weights_only=False)
    for name in (TRANSFORMER, RECONSTRUCTION):
        torch.save(early, stage / "epoch=000000.ckpt")  # first the same weights, then others
        exec("\n".join(code_of(read(name))[:3]), {})
        early["state_dict"] = {key: 2 * value for key, value in early["state_dict"].items()}
    lines = capsys.readouterr().out
    assert "2026-01-02_digits_transformer, after 7 steps" in lines
    for stage_name in ("2026-01-01_digits_vqgan", "2026-01-01_digits_vqgan, step 7"):
        assert f"{stage_name}: 20 codes, each for 2 x 2 pixels" in lines
    assert "nothing to compare" not in lines
    torch.save(torch.load(stage / "last.ckpt", weights_only=False), stage / "epoch=000000.ckpt")
    exec("\n".join(code_of(read(RECONSTRUCTION))[:3]), {})
    assert "with which there is nothing to compare" in capsys.readouterr().out
    assert "2026-01-01_digits_transformer" not in lines


PUBLISHED = "cin_transformer"  # the name of the run that these notebooks are given


def published_run(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """A run where the published model would be, below a folder."""
    return tiny_run(folder / published_models()[PUBLISHED].folder, config)


def run_cells(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A notebook in this process and a folder, on `published_run`; what its cells leave."""
    pytest.importorskip("IPython")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TAMING_RUN", PUBLISHED)
    monkeypatch.setenv("TAMING_DEVICE", "cpu")
    names: dict[str, Any] = {}
    for source in code_of(read(name)):
        exec(source, names)
    return names


def test_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = published_run(tmp_path, transformer_config(**SEGMENTED))
    add_data(run, write_data(tmp_path / "data.yaml"))
    names = run_cells(CONDITIONS, tmp_path, monkeypatch)
    assert names["image"].shape[1:] == (16, 16) and names["large"].shape == (8, 8)
    assert [len(row) for row in names["rows"]] == [4, 4]
    first, mirrored = names["example"].c, names["mirrored"].c
    assert torch.equal(mirrored, first.flip(-1)) and not torch.equal(mirrored, first)


def test_conditions_are_not_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taming.errors import UserError

    add_data(published_run(tmp_path), write_data(tmp_path / "data.yaml"))
    with pytest.raises(UserError, match="has no image as condition, but: "):
        run_cells(CONDITIONS, tmp_path, monkeypatch)


def test_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_data(published_run(tmp_path, transformer_config(**SCENES)), write_scenes(tmp_path))
    names = run_cells(SCENE, tmp_path, monkeypatch)
    assert [len(row) for row in names["rows"]] == [4, 4, 4]
    assert "box: [0.6, 0.4, 0.3, 0.3]" in capsys.readouterr().out


def test_completion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_data(published_run(tmp_path), write_data(tmp_path / "data.yaml"))
    names = run_cells(COMPLETION, tmp_path, monkeypatch)
    assert "8 of 16 codes are kept" in capsys.readouterr().out
    assert [len(row) for row in names["rows"]] == [6, 6, 6]


@pytest.mark.slow
def test_training_a_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, as of an installation: it trains by the command `taming`."""
    pytest.importorskip("IPython")
    for number in range(12):
        Image.effect_noise((70, 66), 80).convert("RGB").save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TAMING_IMAGES", str(tmp_path))
    monkeypatch.setenv("TAMING_STEPS", "2")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, Any] = {}
    for source in code_of(read(TRAINING)):
        exec(source, names)
    assert names["step"] == 2 and names["score"]["psnr"] > 0
    assert len(list(tmp_path.glob("logs/*_own_images_vqgan/curves.png"))) == 1
