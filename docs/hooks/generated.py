"""Pages that are made while the site is built, and their places in the navigation.

Of what is in the repository already: docstrings (a page for each module), configs with their
comments, notebooks with their outputs, and the documents beside the README.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PROJECT = {"Contributing": "CONTRIBUTING.md", "Security": "SECURITY.md", "Changes": "CHANGELOG.md"}
Nav = list[Any]


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages, and their entries to the navigation."""
    made: dict[str, Nav] = {}
    for name, pages in (
        ("<modules>", module_pages()),
        ("<configs>", config_pages()),
        ("<notebooks>", notebook_pages()),
        ("<project>", project_pages()),
    ):
        made[name] = []
        for entry, path, content in pages:
            files.append(File.generated(config, path, content=content))
            if entry is not None:
                made[name].append({entry: path})
    made["<modules>"] = nested(made["<modules>"])
    made["<commands>"] = command_entries(files)
    config.nav = filled_in(config.nav, made)
    return files


def filled_in(nav: Nav, made: dict[str, Nav]) -> Nav:
    """The navigation with what was made."""
    result: Nav = []
    for entry in nav:
        title, target = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(target, list):
            result.append({title: filled_in(target, made)})
        elif target in made:
            result += made[target] if title is None else [{title: made[target]}]
        else:
            result.append(entry)
    return result


def command_entries(files: Files) -> Nav:
    """The pages of commands, in the order of `taming --help`."""
    from taming.program import OWN, SCRIPTS

    known = {Path(file.src_uri).stem: file.src_uri for file in files if "commands/" in file.src_uri}
    return [{name: known[name]} for name in (*OWN, *SCRIPTS) if name in known]


# ---------------------------------------------------------------------- docstrings


def module_pages() -> Iterator[tuple[str, str, str]]:
    """Dotted name, path and text of the page of each public module."""
    for path in sorted((ROOT / "taming").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if any(part.startswith("_") for part in parts):
            continue
        name = ".".join(parts)
        yield name, f"reference/python/{name}.md", f"::: {name}\n"


def nested(entries: Nav) -> Nav:
    """Modules below their packages, as the navigation shows them."""
    tree: dict[str, Any] = {}
    for entry in entries:
        (name, path) = next(iter(entry.items()))
        place = tree
        for part in name.split("."):
            place = place.setdefault(part, {})
        place[""] = path
    return branches(tree["taming"], "taming")


def branches(tree: dict[str, Any], name: str) -> Nav:
    """A package's own page, its modules, and its packages."""
    result: Nav = [{name: tree[""]}]
    for part in sorted(part for part in tree if part):
        below = tree[part]
        result.append({part: below[""]} if set(below) == {""} else {part: branches(below, part)})
    return result


# ---------------------------------------------------------------------- configs


def config_pages() -> Iterator[tuple[str, str, str]]:
    """Name, path and text of the page of each config."""
    paths = sorted((ROOT / "configs").rglob("*.yaml"))
    names = [path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in paths]
    yield "All", "configs/index.md", config_overview(dict(zip(names, paths, strict=True)))
    for name, path in zip(names, paths, strict=True):
        yield name, f"configs/{name}.md", config_page(name, path.read_text("utf-8"))


def config_overview(configs: dict[str, Path]) -> str:
    """The first sentence of every config."""
    rows = []
    for name, path in configs.items():
        first = head_of(path.read_text("utf-8"))[0].partition(". ")[0].rstrip(".:")
        rows.append(f"| [{name}]({name}.md) | {escaped(first)} |")
    table = "| config | what it is |\n|---|---|\n" + "\n".join(rows)
    return f"# Configs\n\n`taming configs --copy NAME` copies one, to change it.\n\n{table}\n"


def config_page(name: str, text: str) -> str:
    """What a config's comments say, by key, and the file as it is."""
    prose, commands = head_of(text)
    rows = [
        f"| `{key}` | `{value}` | {escaped(says)} |"
        if value
        else f"| `{key}` | | {escaped(says)} |"
        for key, value, says in commented_keys(text)
    ]
    table = "## Keys that are explained here\n\n| key | value | |\n|---|---|---|\n" + "\n".join(
        rows
    )
    parts = [f"# {name}", escaped(prose)]
    parts += [f"```bash\n{commands}\n```"] if commands else []
    parts += [table] if rows else []
    parts.append(f"## The file\n\n`configs/{name}.yaml`:\n\n```yaml\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text of a comment as Markdown that shows it as it is."""
    return re.sub(r"([|<>*_`\[\]{}])", r"\\\1", text)


def head_of(text: str) -> tuple[str, str]:
    """The comment at a config's beginning: its sentences, and its commands."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    prose = " ".join(line.strip() for line in lines if not line.startswith("  "))
    return prose, "\n".join(line[2:] for line in lines if line.startswith("  "))


def commented_keys(text: str) -> Iterator[tuple[str, str, str]]:
    """Path, value and comment of keys that have one, beside them or in lines above them."""
    lines = text.splitlines()
    head = next((n for n, line in enumerate(lines) if not line.startswith("#")), 0)
    for path, key, value in keys_of(yaml.compose(text)):
        line = value.end_mark.line if isinstance(value, yaml.ScalarNode) else key.start_mark.line
        beside = re.search(r"(?:^|\s)#\s?(.*)$", lines[line][key.end_mark.column :])
        above = []
        for number in range(key.start_mark.line - 1, head - 1, -1):
            if not lines[number].lstrip().startswith("#"):
                break
            above.insert(0, lines[number].lstrip().removeprefix("#").strip())
        says = " ".join([*above, *([beside[1]] if beside else [])])
        if says:
            yield path, value_of(value, lines), says


def value_of(node: yaml.Node, lines: list[str]) -> str:
    """A value on one line as the file has it; "" of what takes several."""
    start, end = node.start_mark, node.end_mark
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    flow = isinstance(node, yaml.SequenceNode) and start.line == end.line
    return lines[start.line][start.column : end.column] if flow else ""


def keys_of(node: Any, path: str = "") -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Every key of a YAML with its dotted path, in the file's order."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{path}.{key.value}" if path else key.value
        yield name, key, value
        yield from keys_of(value, name)


# ---------------------------------------------------------------------- notebooks, documents


def notebook_pages() -> Iterator[tuple[str | None, str, str | bytes]]:
    """Title, path and text of the page of each notebook; its pictures have no title."""
    for path in sorted((ROOT / "scripts").glob("*.ipynb")):
        content = json.loads(path.read_text("utf-8"))
        parts, pictures = [], {}
        for cell in content["cells"]:
            source = "".join(cell["source"])
            parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
            for output in cell.get("outputs", []):
                parts += shown(output, path.stem, pictures)
        text = re.sub(r"\]\(([\w-]+)\.ipynb\)", r"](\1.md)", "\n\n".join(parts))
        title = re.search(r"^# (.*)$", text, re.MULTILINE)
        note = f"*The notebook `scripts/{path.name}` with its stored outputs.*"
        first, _, rest = text.partition("\n")
        yield (
            title[1] if title else path.stem,
            f"notebooks/{path.stem}.md",
            f"{first}\n\n{note}\n{rest}",
        )
        for name, raw in pictures.items():
            yield None, f"notebooks/{name}", raw


def shown(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """An output of a cell as Markdown; what is a picture goes to `pictures`."""
    data = output.get("data", {})
    for kind, suffix in (("image/png", "png"), ("image/gif", "gif"), ("image/jpeg", "jpg")):
        if kind in data:
            name = f"{stem}-{len(pictures)}.{suffix}"
            pictures[name] = base64.b64decode("".join(data[kind]))
            yield f"![output]({name})"
            return
    if "text/markdown" in data:
        yield "".join(data["text/markdown"])
    elif output["output_type"] == "stream":
        yield "```text\n" + "".join(output["text"]).rstrip() + "\n```"


def project_pages() -> Iterator[tuple[str, str, str]]:
    """The documents beside the README."""
    for title, name in PROJECT.items():
        text = (ROOT / name).read_text("utf-8")
        text = re.sub(r"\]\(docs/([^)]*)\)", r"](../\1)", text)
        yield title, f"project/{name.lower()}", text
