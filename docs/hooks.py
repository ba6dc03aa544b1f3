"""What the site has beside the pages here: README, CHANGELOG and the like, all commands and all public names.

A hook of mkdocs. These pages are written when the site is built (`make docs`), so that nothing is told twice. Links
that lead out of this folder lead to the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from ratherthan.app.cli import app

ROOT = Path(__file__).parents[1]
BLOB = "https://github.com/ratherthan/ratherthan/blob/main/"
AT_ROOT = {
    "README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}  # fmt: skip
REFERENCE = {
    "Models": ("loading", "model", "zoo", "inference"),
    "Inputs and outputs": ("inputs", "outputs", "baselines", "superpixels"),
    "Contrasts": ("contrast",),
    "Attribution": ("attribution",),
    "Searches": ("search",),
    "Evaluation": ("evaluation",),
    "Audit": ("auditing",),
    "Results and evidence": ("result", "evidence", "references"),
    "Data": ("data",),
    "Settings and errors": ("settings", "errors"),
}
"""Pages of the API reference, and the modules whose public names each tells."""


class Examples(griffe.Extension):
    """Reads the section Example of a docstring as the section Examples, which is set as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object that is found."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are written here."""
    for name, text in [*at_root(), ("cli.md", commands()), *references()]:
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead where the site has what they name, and drop what only tests read of a block of code."""
    here = page.file.src_uri
    source = next((name for name, there in AT_ROOT.items() if there == here), f"docs/{here}")
    markdown = re.sub(r"^```(\w+) (?:no-run|needs-data)$", r"```\1", markdown, flags=re.MULTILINE)
    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", lambda found: _link(found, source, here), markdown)


def _link(found: re.Match[str], source: str, here: str) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
    inside = AT_ROOT.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
    target = posixpath.relpath(inside, posixpath.dirname(here) or ".") if inside else BLOB + path
    return f"]({target}{found[2] or ''})"


def at_root() -> Iterator[tuple[str, str]]:
    """The pages of the repository's root."""
    for name, there in AT_ROOT.items():
        yield there, (ROOT / name).read_text()


def commands() -> str:
    """Each command with its options, as `--help` tells them."""
    command = typer.main.get_command(app)
    told = get_docs_for_click(obj=command, ctx=typer.Context(command), name="ratherthan", title="Command line")
    told = re.sub(r"\n*^ *\[cyan\](.*)\[/cyan\]$", r"\n\1", told, flags=re.MULTILINE)
    told = re.sub(r"\[bold\]Example\[/bold\]\n((?:.+\n?)+)", r"**Examples**\n\n```console\n\1```\n", told)
    told = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .+\n)+", "", told)  # cut short there, and all of them follow
    return told.replace("```console\n$ ", "```console\n")


def public() -> dict[str, str]:
    """The public names, and the module each comes from."""
    stub = (ROOT / "src/ratherthan/__init__.pyi").read_text()
    inside = {f"data.{name}": "data" for name in ("load", "names", "match_labels")}  # of the one module among them
    return inside | {
        name: module for module, name in re.findall(r"^from \.(\w+)[\w.]* import (\w+)", stub, re.MULTILINE)
    }


def references() -> Iterator[tuple[str, str]]:
    """Pages of the public names that no page tells already."""
    told = {
        name
        for page in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"^::: ratherthan\.(\w+)$", page.read_text(), re.MULTILINE)
    }
    listed = [
        "# API reference\n\nAll public names are attributes of `ratherthan`. Methods, searches and experiments are told"
        " on pages of their own: [methods](../methods.md), [experiments](../experiments.md).\n"
    ]
    for title, modules in REFERENCE.items():
        names = [name for each in modules for name, module in public().items() if module == each and name not in told]
        place = title.lower().replace(" ", "-") + ".md"
        listed.append(f"- [{title}]({place}): " + ", ".join(f"[`{name}`][ratherthan.{name}]" for name in names))
        options = "    options: {{members: null, heading: {0}, toc_label: {0}}}"
        directives = [f"::: ratherthan.{name}\n{options.format(name)}" for name in names]
        yield f"reference/{place}", "\n\n".join([f"# {title}", *directives])
    yield "reference/index.md", "\n".join(listed) + "\n"
