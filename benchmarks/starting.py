"""Seconds that commands take to begin, and the demo's page until it can be used.

    python benchmarks/starting.py
    python benchmarks/starting.py --beside ../before    # another clone, in turn

Commands are asked for their `--help`, which ends where their work would begin. The page is that of
a run with few weights, which load in no time. A browser that is there already opens it as soon as
the server answers (needs Chromium: `apt install chromium`), and it can be used when its button is
there and its script is done. Every call is a process of its own; figures are medians, the least
and the most, of wall clock.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measure import interleaved, write_results
from omegaconf import OmegaConf

from taming.checkpoint import save_atomic
from taming.command_line import Parser, add_flags, flag, from_flags
from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.errors import UserError, command

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

from tests.kit.browser import BROWSER, Page, browser, named  # noqa: E402

HELP = {
    "taming --help": ["-m", "taming", "--help"],
    "taming sample --help": ["-m", "taming", "sample", "--help"],
    "taming download --list": ["-m", "taming", "download", "--list"],
    "python main.py --help": ["main.py", "--help"],
}
READY = (
    f"{named('button', 'Sample')} && "
    "document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
)


@dataclass(frozen=True)
class Options:
    rounds: int = flag(5, "calls of each")
    beside: Path | None = flag(None, "another clone, whose times are taken in turn with ours")
    config: str = flag("configs/digits_transformer.yaml", "of the run whose page is opened")


def make_run(folder: Path, config: str) -> Path:
    """A run with initial weights."""
    torch.manual_seed(0)
    settings = without_checkpoint_paths(load_config([config]).model)
    model = instantiate_from_config(settings, key="model")
    folder.mkdir()
    OmegaConf.save({"model": settings}, folder / "config.yaml")
    save_atomic({"state_dict": model.state_dict()}, folder / "model.ckpt")
    return folder


def environment(clone: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(clone)}


def ask(words: Sequence[str], clone: Path) -> None:
    """Run Python with `words` in a clone."""
    line = [sys.executable, *words]
    subprocess.run(line, cwd=clone, env=environment(clone), check=True, stdout=subprocess.DEVNULL)


def open_page(page: Page, run: Path, clone: Path) -> None:
    """Start the demo's server, and wait until its page can be used."""
    page.open("about:blank")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--server.port={port}", "--server.headless=true", "--device", "cpu"]
    line = [sys.executable, "-m", "taming", "demo", "-r", str(run), *flags]
    server = subprocess.Popen(
        line,
        cwd=run,
        env=environment(clone),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        while not answers(f"{address}/_stcore/health"):
            assert server.poll() is None, "the server ended"
            time.sleep(0.02)
        page.open(address)
        page.wait(READY)
    finally:
        server.terminate()
        server.wait()


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address).close()
    except OSError:
        return False
    return True


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    if not BROWSER:
        raise UserError("the demo's page is opened in Chromium: apt install chromium")
    clones = {"": ROOT} if options.beside is None else {"": ROOT, " before": options.beside}
    calls: dict[str, Callable[[], None]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = make_run(folder / "run", options.config)
        with browser(folder / "browser") as page:
            for suffix, clone in clones.items():
                clone = clone.resolve()
                calls |= {text + suffix: partial(ask, words, clone) for text, words in HELP.items()}
                calls["the demo's page" + suffix] = partial(open_page, page, run, clone)
            seconds = interleaved(calls, torch.device("cpu"), options.rounds, warmup=1)
    for text, figures in sorted(seconds.items()):
        print(f"{text:32}" + ", ".join(f"{key} {value:.2f} s" for key, value in figures.items()))
    report = {"rounds": options.rounds, "seconds": seconds}
    path = write_results("starting", torch.device("cpu"), report)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
