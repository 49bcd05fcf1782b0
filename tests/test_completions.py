"""What shells offer behind `taming`, by the scripts that it prints for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(scope="module")
def completions() -> dict[str, str]:
    code = "from taming.program import main\n"
    code += "".join(f"print('#', {shell!r}); main(['completion', {shell!r}])\n" for shell in SHELLS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    parts = [part.partition("\n") for part in made.stdout.split("# ")[1:]]
    return {name: text for name, _, text in parts}


@pytest.mark.slow
def test_completions_are_nothing_but_the_script(completions: dict[str, str]) -> None:
    """What a script prints when it is asked for its flags would be evaluated by the shell."""
    assert completions["bash"].startswith("_taming() {")
    assert not any("python scripts/" in text for text in completions.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("taming", "sa"), "sample sample-data"),
        (("taming", "train", "--no-t"), "--no-test"),
        (("taming", "train", "--base", "digits_v"), "digits_variants_transformer digits_vqgan"),
        (("taming", "evaluate", "--swe"), "--sweep"),
        (("taming", "demo", "--la"), "--label_names"),
        (("taming", "figures", "li"), "likelihood"),
        (("taming", "figures", "cost", "--fac"), "--factors"),
        (("taming", "export", "safe"), "safetensors"),
        (("taming", "completion", "f"), "fish"),
        (("taming", "configs", "--copy", "small/vqgan", "digits_vq"), "digits_vqgan"),
        (("taming", "configs", "--copy", "digits_vqgan", "--o"), "--outdir"),
        (("taming", "train", "--base", "=", "digits_vq"), "digits_vqgan"),
        (("taming", "train", "--base=digits_vq"), "--base=digits_vqgan"),
        (("taming", "gallery", "--only", "boxes", "cl"), "classes"),
        (("taming", "preview", "--split", "va"), "validation"),
        (("taming", "sample", "-r", "cin_"), "cin_transformer"),
        (("taming", "demo", "--resume", "drin"), "drin_transformer"),
        (("taming", "sample", "-r", "lo"), ""),  # of logs: the shell's own
        (("taming", "sample", "-r", "''"), ""),
        (("taming", "train", "-r", "cin_"), ""),
        (("taming", "gallery", "--seed", "cl"), ""),
        (("taming", "reconstruct", "-r", "run", "ll"), ""),  # no further one
        (("taming", "reconstruct", "-r", "ll"), "llamagen_vq16 llamagen_vq16_t2i llamagen_vq8"),
        (("taming", "guide", "--mask", "''"), ""),  # a file: the shell's own
        (("taming", "guide", "--mask=a"), ""),
        (("taming", "guide", "--mask", "=", "''"), ""),
        (("taming", "guide", "--mask", "a.png", "--fi"), "--film"),
        (("taming", "guide", "--film", "--pas"), "--paste"),
        (("taming", "configs", "--list", "''"), "--copy --help --list --outdir -h -o"),
        (
            ("taming", "download", "vqgan_imagenet_f16_1"),
            "vqgan_imagenet_f16_1024 vqgan_imagenet_f16_16384",
        ),
    ],
)
def test_bash_completes(completions: dict[str, str], words: tuple[str, ...], expected: str) -> None:
    tail = f"\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _taming; "
    tail += 'echo "${COMPREPLY[@]}"'
    made = subprocess.run(
        ["bash", "-c", completions["bash"] + tail], capture_output=True, text=True
    )
    assert made.stdout.strip() == expected and not made.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes(completions: dict[str, str]) -> None:
    """By the function that bash calls, of whose words it takes those that begin as is typed."""
    tail = "\necho ${_comps[taming]}; COMP_WORDS=(taming train --no-t); COMP_CWORD=2; "
    tail += 'setopt ksharrays; _taming; echo "${COMPREPLY[@]}"'
    for word in ("--base=digits_vq", "--base=pyproj"):
        tail += f'; COMP_WORDS=(taming train {word}); _taming; echo "${{COMPREPLY[@]}}"'
    made = subprocess.run(
        ["zsh", "-f", "-c", completions["zsh"] + tail], capture_output=True, text=True, cwd=ROOT
    )
    used, words, joined, file = made.stdout.splitlines()
    assert file == "--base=pyproject.toml"
    assert "--base=digits_vqgan" in joined.split()
    assert "_taming" in used and "--no-test" in words.split() and not made.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(completions: dict[str, str]) -> None:
    for typed, expected in (
        ("taming sa", ["sample", "sample-data"]),
        ("taming train --no-t", ["--no-test"]),
        ("taming train --base digits_v", ["digits_variants_transformer", "digits_vqgan"]),
        ("taming configs --copy digits_v", ["digits_variants_transformer", "digits_vqgan"]),
        ("taming configs --copy small/vqgan digits_vq", ["digits_vqgan"]),
        ("taming train --base=digits_vq", ["--base=digits_vqgan"]),
        ("taming gallery --only boxes cl", ["classes"]),
        ("taming figures li", ["likelihood"]),
        ("taming completion f", ["fish"]),
        ("taming preview --split va", ["validation"]),
        ("taming sample -r cin_", ["cin_transformer"]),
        ("taming guide --mask pyproj", ["pyproject.toml"]),
        ("taming guide --fil", ["--film"]),
        ("taming train --base ./pyproj", ["./pyproject.toml"]),
        ("taming export diffusers pyproj", ["pyproject.toml"]),
        ("taming reconstruct -r run pyproj", ["pyproject.toml"]),
        ("taming reconstruct -r run llam", []),
    ):
        code = f"{completions['fish']}\ncomplete -C '{typed}'"
        made = subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert made.stdout.split() == expected and not made.stderr
