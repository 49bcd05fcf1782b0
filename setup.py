"""The wheel also has the scripts and configs, which `taming.shipped` finds there."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithScriptsAndConfigs(build_py):
    """Everything else is declared in pyproject.toml."""

    def run(self) -> None:
        super().run()
        for folder, pattern in (("scripts", "*.py"), ("configs", "*.yaml"), ("configs", "*.png")):
            paths = list(Path(folder).rglob(pattern))
            if not paths:
                raise FileNotFoundError(f"no {folder}/**/{pattern} beside setup.py")
            for path in paths:
                target = Path(self.build_lib, "taming", path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": WithScriptsAndConfigs})
