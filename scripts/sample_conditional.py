"""Sample images in the browser: pick an example, upload or paint one, and watch the image grow.

streamlit run scripts/sample_conditional.py -- -r logs/<run>
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

# Streamlit puts the script's own folder on the path, not the clone that the package is in. In an
# installation this is the package's own folder, whose files are no modules of their own.
clone = Path(__file__).resolve().parents[1]
if (clone / "taming").is_dir():
    sys.path.append(str(clone))

import streamlit as st

from taming.imports import many_imports

ABOUT = """
A transformer samples the codes of an image one after another, and the VQGAN turns them into pixels.
Choose what to start from in the sidebar, then press *Sample*.
"""


def main() -> None:
    st.set_page_config(page_title="Sample an image", page_icon=":art:", layout="wide")
    st.title("Sample an image")
    st.markdown(ABOUT)
    with st.spinner("Starting"), many_imports():  # they take seconds
        # First, and waited for, what `taming demo` is importing in another thread: two threads that
        # import the same modules from two ends meet modules that are not whole.
        import_module("taming.demo.arguments")
        from taming.demo import page
    page.main()


if __name__ == "__main__":
    main()
