"""`make gpu`: its steps, which of them are run again, and what ends them; with made-up commands."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.documents import ROOT
from tests.workplace import run_script

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("gpu")
    for name in ("gpu", "measure"):
        sys.modules.pop(name, None)


FACTS = {"gpu": "made up", "code": "0"}


def python(gpu: ModuleType, name: str, code: str, seconds: int = 20, **options: Any) -> Any:
    return gpu.Step(name, ("-c", code), seconds, **options)


def test_all_of_it_takes_less_than_nine_minutes(gpu: Any) -> None:
    assert sum(step.seconds for step in gpu.STEPS) <= 9 * 60 - 10  # in which PyTorch is imported
    assert gpu.STEPS[0].words[:4] == ("-m", "pytest", "-m", "gpu")
    assert {"tests/test_gpu.py", "tests/modules/transformer/test_decoding.py"} <= set(
        gpu.STEPS[0].words
    )
    names = [step.name for step in gpu.STEPS]
    assert len(set(names)) == len(names)


def test_every_benchmark_that_takes_a_device_is_a_step(
    gpu: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = gpu.STEPS[1:]
    flag = 'add_argument("--device"'
    paths = [path for path in BENCHMARKS.glob("*.py") if flag in path.read_text()]
    on_cuda = {f"benchmarks/{path.name}" for path in paths}
    assert {step.words[0] for step in steps} == on_cuda
    for script in on_cuda:
        with pytest.raises(SystemExit):
            run_script(str(ROOT / script), ["--help"])
        text = capsys.readouterr().out
        for step in steps:
            if step.words[0] == script:
                assert step.words[1:3] == ("--device", "cuda")
                assert all(word in text for word in step.words if word.startswith("--")), script
                assert step.figures


def test_what_has_passed_is_not_run_again(gpu: Any, tmp_path: Path) -> None:
    results, runs = tmp_path / "results", tmp_path / "runs"
    results.mkdir()
    note = f"open({str(runs)!r}, 'a').write('x')"
    result = str(results / "a.json")
    write = f"{note}; open({result!r}, 'w').write('{{\"rate\": {{\"a, b\": 2}}}}')"
    write += f"; print('written to {result}')"
    steps = [
        python(gpu, "writes", write, figures={"per_s": ("rate", "a, b")}),
        python(gpu, "fails", f"{note}; raise SystemExit(3)"),
    ]

    def states(facts: dict[str, str] = FACTS) -> list[str]:
        outcomes = gpu.run_all(steps, gpu.Record(results / "gpu-cuda.json", facts))
        assert outcomes[0].figures == {"per_s": 2}
        return [outcome.state for outcome in outcomes]

    assert states() == ["passed", "FAILED"]
    assert states() == ["passed before", "FAILED"] and runs.read_text() == "x" * 3
    assert states({**FACTS, "code": "1"}) == ["passed", "FAILED"]
    (results / "a.json").unlink()
    assert states({**FACTS, "code": "1"}) == ["passed", "FAILED"]
    assert states({**FACTS, "gpu": "another"}) == ["passed", "FAILED"]
    (results / "gpu-cuda.json").write_text("{")
    assert states() == ["passed", "FAILED"]


def test_a_step_without_the_expected_figures_has_failed(gpu: Any, tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_text(json.dumps({"rate": 1}))
    says = f"print('written to {path}')"
    for code, place, state in (("", "rate", "FAILED"), (says, "rates", "FAILED")):
        figures = {"per_s": (place,)}
        assert gpu.run(python(gpu, "writes", code, figures=figures)).state == state
    assert gpu.run(python(gpu, "writes", says, figures={"per_s": ("rate",)})).figures == {
        "per_s": 1
    }


def test_a_step_ends_with_its_time_and_so_do_its_processes(gpu: Any, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nfor _ in range(600):\n    time.sleep(.05); open({str(alive)!r}, 'w')"
    code = (
        f"import subprocess, sys; print('begun', flush=True); "
        f"subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    )
    start = time.monotonic()
    outcome = gpu.run(python(gpu, "endless", code, seconds=2))
    assert outcome.state == "OUT OF TIME" and time.monotonic() - start < 20
    alive.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not alive.exists()


def test_the_summary_names_what_failed(gpu: Any) -> None:
    good = gpu.Outcome("a", "passed", 1.0, {"images_per_s": 290.0})
    bad = gpu.Outcome("longer", "OUT OF TIME", 2.5, {})
    lines = gpu.summary([good, bad], FACTS).splitlines()
    assert lines[0] == "gpu: made up, code: 0"
    assert lines[1].split() == ["a", "passed", "1.0", "s", "images_per_s", "290"]
    assert lines[-1] == "not passed: longer"
    assert gpu.summary([good], FACTS).endswith("all passed")


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_says_whether_all_passed(
    gpu: Any, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(gpu.measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu, "STEPS", (python(gpu, "one", f"raise SystemExit({code})"),))
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == code
    written = json.loads((tmp_path / "results" / "gpu-cuda.json").read_text())
    assert written["gpu"] == "made up" and written["code"] == gpu.code_version()


def test_the_code_is_known_by_its_content(gpu: Any, tmp_path: Path) -> None:
    (tmp_path / "taming").mkdir()
    (tmp_path / "taming" / "a.py").write_text("1")
    before = gpu.code_version(tmp_path)
    (tmp_path / "README.md").write_text("other words")
    assert gpu.code_version(tmp_path) == before
    (tmp_path / "taming" / "a.py").write_text("2")
    assert gpu.code_version(tmp_path) != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_a_sentence(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2 and "needs a CUDA device" in capsys.readouterr().err


def test_workers_of_tests_share_the_processors(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    assert gpu._run(python(gpu, "one", code)) == ("passed", ["9"])
    step = gpu.Step("tests", ("-c", code, "pytest"), 20)
    assert gpu._run(step) == ("passed", ["4"])
