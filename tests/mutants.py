"""Put faults into modules, one at a time, and show those that no test notices.

`make mutants MODULE=taming/modules/vqvae/gumbel.py` works on a copy of the tree under
build/mutants. By default the tests of the module's room are run, or those of TESTS.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALSO = ["benchmarks", "configs", "data", "docs", "main.py", "scripts", "README.md", "CHANGELOG.md"]
SETTINGS = """
[tool.mutmut]
source_paths = ["taming"]
only_mutate = {modules}
also_copy = {also}
pytest_add_cli_args_test_selection = {tests}
# Where faults can be switched on, nothing compiles.
pytest_add_cli_args = ["-p", "no:cacheprovider", "-k", "not compile"]
"""


def tests_of(module: str) -> str:
    """The folder of tests that mirrors a module's, or its file of tests at the top."""
    path = Path(module)
    if len(path.parts) == 2:
        return f"tests/test_{path.name}"
    return str(Path("tests", *path.parts[1:-1]))


def copy_tree(target: Path) -> None:
    """All files of the project that git does not ignore."""
    shutil.rmtree(target, ignore_errors=True)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def mutmut(folder: Path, *arguments: str, shown: bool = False) -> str:
    """What a command of mutmut prints."""
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=not shown,
        stdout=None if shown else subprocess.PIPE,
        text=True,
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="make mutants MODULE=...")
    parser.add_argument("modules", nargs="+", help="files of taming/, or patterns of them")
    parser.add_argument("--tests", nargs="+", help="files and folders of tests")
    parser.add_argument("--processes", default="2", help="how many faults are tried side by side")
    args = parser.parse_args()
    modules = [str(p.relative_to(ROOT)) for pattern in args.modules for p in ROOT.glob(pattern)]
    if not modules:
        parser.error(f"there is no {' '.join(args.modules)}; give a file such as taming/config.py")
    tests = args.tests or sorted({tests_of(module) for module in modules})
    folder = ROOT / "build" / "mutants"
    copy_tree(folder)
    with (folder / "pyproject.toml").open("a") as file:
        file.write(SETTINGS.format(modules=modules, tests=tests, also=ALSO))
    mutmut(folder, "run", "--max-children", args.processes, shown=True)
    states = dict(
        line.strip().rsplit(": ", 1)
        for line in mutmut(folder, "results", "--all", "true").splitlines()
        if ": " in line
    )
    if "not checked" in states.values():
        sys.exit("these tests fail without a fault, as said above: choose others with TESTS")
    for name, state in states.items():
        if state not in ("killed", "timeout", "caught by type check"):
            print(mutmut(folder, "show", name))
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
    print(f"{len(states)} faults: {counts}")


if __name__ == "__main__":
    main()
