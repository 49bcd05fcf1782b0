"""The server of `Launcher`: imports once, forks for every request, answers with the exit code."""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import sys
import time
import traceback
from typing import Any

import PIL.Image  # noqa: F401
import pytorch_lightning  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import taming.models.cond_transformer
import taming.models.vqgan
import taming.training.cli  # noqa: F401
from tests.kit.launch import HUNG, end_group, outlived, shell_code, wait_unreaped


def main() -> None:
    """Serve requests, one JSON line each, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # no program has to look for garbage among what is imported
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


def serve(request: dict[str, Any]) -> tuple[int, bool]:
    """Fork, run the program in the child, and wait: its exit code, and whether it left any."""
    child = os.fork()
    if child == 0:
        _run(request)
    deadline = time.monotonic() + request["limit"]
    ended = wait_unreaped(child, deadline)
    orphans = ended and outlived(child)
    end_group(child)
    _, status = os.waitpid(child, 0)
    return (shell_code(os.waitstatus_to_exitcode(status)), orphans) if ended else (HUNG, False)


def _run(request: dict[str, Any]) -> None:
    """Become the program: a session, a folder, an environment and an output of its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request["environment"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    sys.argv = request["argv"]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        # As the interpreter ends: by the signal itself.
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _flush()
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    _flush()
    os._exit(_shut_down(code))


def _shut_down(code: int) -> int:
    """What the interpreter does at its end, as far as programs can tell."""
    import atexit
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    _flush()
    return code & 0xFF


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    main()
