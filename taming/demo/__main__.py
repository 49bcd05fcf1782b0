"""`python -m taming.demo run SCRIPT`: as `python -m streamlit`, while the page's imports begin.

They take seconds, in which the server starts and the browser loads its part of the page.
"""

from __future__ import annotations

from threading import Thread

from streamlit.web import cli

from taming.imports import many_imports


def import_early() -> None:
    """What the page computes with; not its own modules, which need a server that is there."""
    with many_imports(of_command=True):
        import taming.guidance.arguments
        import taming.sampling.arguments
        import taming.sampling.load  # noqa: F401


if __name__ == "__main__":
    Thread(target=import_early, daemon=True).start()
    cli.main(prog_name="streamlit")
