"""`python -m taming.demo run SCRIPT`: as `python -m streamlit`, while the page's imports begin.

They take seconds, in which the server starts and the browser loads its part of the page. What is
wrong with the page's own words, those behind `--`, ends the command as soon as they can be read.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread

from streamlit.web import cli

from taming.errors import UserError, sentence
from taming.imports import many_imports


def begin_page(words: Sequence[str]) -> None:
    """Import what the page computes with, and read its command line.

    Not its own modules, which need a server that is there. Nothing has been made by then that an
    end of the process would lose.
    """
    with many_imports(of_command=True):
        from taming.demo.arguments import read_page_arguments
    try:
        read_page_arguments(words)
    except UserError as error:
        print(f"error: {sentence(error)}", file=sys.stderr, flush=True)
        os._exit(2)  # of the whole process: this is a thread beside Streamlit's


def words_of_page(argv: Sequence[str]) -> list[str]:
    """What is behind the first `--` of a command line."""
    return [*argv[list(argv).index("--") + 1 :]] if "--" in argv else []


def run_server(server: Callable[[], object]) -> None:
    """Serve until the server ends, and leave the process with its code, after what others have
    registered for its end.

    Python's own end would throw the thread that draws out of torch's code, which C++ answers with
    an abort of the process. To be called before others register anything.
    """
    code = 1  # of an exception, which Python prints

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    atexit.register(leave)
    try:
        server()
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
        raise


if __name__ == "__main__":
    Thread(target=begin_page, args=(words_of_page(sys.argv),), daemon=True).start()
    run_server(partial(cli.main, prog_name="streamlit"))
