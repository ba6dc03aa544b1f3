"""Plug-ins are imported once, and a broken one hinders nobody."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ratherthan.registry import load_plugins


def install(folder: Path, name: str, code: str) -> None:
    """A package with an entry point, as pip would leave it."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ratherthan.plugins]\n{name} = {name}\n")


def test_plugins_are_imported_once_and_may_look_up_names_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "plugin_that_counts", "from ratherthan.registry import load_plugins\nload_plugins()\ncount = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins()
    sys.modules["plugin_that_counts"].count += 1
    load_plugins()
    assert sys.modules.pop("plugin_that_counts").count == 1


def test_a_broken_plugin_is_warned_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    install(tmp_path, "plugin_that_breaks", "raise ImportError('needs a newer house')\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins()
    load_plugins()
    assert [str(each.message) for each in recwarn] == [
        "plug-in plugin_that_breaks cannot be loaded: needs a newer house"
    ]
