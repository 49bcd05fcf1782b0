"""Files made to do harm, and strangers' configs: refused in a sentence, with nothing executed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from taming.downloads import Patience
from taming.errors import UserError
from taming.pretrained import download_model
from taming.published_models import Published
from tests.faults.cases import CASES
from tests.faults.hostile import large_in_zip, some_hostile_files
from tests.faults.made_up_input import PLACES, attacked
from tests.faults.made_up_values import ATTACKS
from tests.faults.sandbox import Sandbox
from tests.faults.training import is_sentence
from tests.kit.images import write_images
from tests.kit.launch import Launcher
from tests.kit.runs import tiny_run
from tests.web import Site, serve


def test_hostile_files_are_refused(sandbox: Sandbox) -> None:
    answers = [
        (f"{target}, {what}", sandbox.run(target, content.decode("latin-1")))
        for target, what, content in some_hostile_files(every=12)
    ]
    bad = [f"{name}: {answer}" for name, answer in answers if not answer.startswith("refused: ")]
    assert not bad, "\n".join([f"{len(bad)} of {len(answers)}:", *bad])


def test_strangers_configs_execute_nothing(sandbox: Sandbox) -> None:
    bad = []
    for number, (target, params) in enumerate(ATTACKS):
        place = PLACES[number % len(PLACES)]
        answer = sandbox.run("stranger", attacked(place, target, params))
        if not answer.startswith("refused: "):
            bad.append(f"{target} as {place}: {answer}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("scripts/sample_fast.py", ["-n", "1", "--device", "cpu"]),
        ("scripts/reconstruct.py", ["images", "--device", "cpu"]),
        ("main.py", ["-t"]),
    ],
)
def test_programs_do_not_execute_a_downloaded_run(
    launcher: Launcher, tmp_path: Path, program: str, flags: list[str]
) -> None:
    run = tiny_run(tmp_path / "run")
    write_images(tmp_path / "images", 2, 8, 8)
    (project,) = run.glob("configs/*-project.yaml")
    config = yaml.safe_load(project.read_text())
    config |= {"data": CASES["vqgan"]()["data"]}
    config["model"] |= {"target": "os.system", "params": {"command": f"touch {tmp_path}/ran"}}
    project.write_text(yaml.safe_dump(config))
    ended = launcher.run(["-r", "run", *flags], tmp_path, program=program)
    assert not (tmp_path / "ran").exists()
    assert ended.code == 2 and is_sentence(ended, "os.system"), ended.output


def test_resolvers_are_off_in_a_downloaded_run(launcher: Launcher, tmp_path: Path) -> None:
    """Their configs could carry what the environment holds into a file name or a request."""
    run = tiny_run(tmp_path / "run")
    (project,) = run.glob("configs/*-project.yaml")
    text = project.read_text().replace("class_label", "${oc.env:SECRET}")
    project.write_text(text)
    ended = launcher.run(
        ["-r", "run", "-n", "1", "--device", "cpu"],
        tmp_path,
        program="scripts/sample_fast.py",
        environment={"SECRET": "hunter2"},
    )
    assert ended.code == 2 and is_sentence(ended, "oc.env"), ended.output
    assert "hunter2" not in ended.output


def test_a_zip_that_grows(tmp_path: Path) -> None:
    """1 MB of a published model, that holds 1 GiB."""
    with serve(Site()) as site:
        site.files["/model.zip"] = large_in_zip()
        model = Published("m", "a model", "-", "logs/m", (f"{site.url}/model.zip",))
        with pytest.raises(UserError) as caught:
            download_model(model, tmp_path, patience=Patience(tries=1, wait=0.0))
    assert "\n" not in str(caught.value) and "GiB" in str(caught.value)
    assert sum(path.lstat().st_blocks * 512 for path in tmp_path.rglob("*")) < 10**8
