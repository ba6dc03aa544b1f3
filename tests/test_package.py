"""The wheel as somebody else installs it: in an environment of its own, outside the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import ratherthan
from turns import of_today

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "PIL", "matplotlib", "pandas", "skimage", "scipy", "captum", "typer", "rich")
pytest.importorskip("hatchling", reason="needs what builds the wheel: pip install -e '.[dev]'")
pytest.importorskip("hatch_fancy_pypi_readme")


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(list(map(str, command)), cwd=folder, env=outside, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # in this process's environment, so that nothing is fetched
    made = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, folder=folder
    )
    assert made.returncode == 0, made.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment `own` that has the wheel; what it needs is borrowed, for torch takes minutes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "own", with_pip=True)
    done = run(folder / "own/bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, folder=folder)
    assert done.returncode == 0, done.stderr
    (packages,) = (folder / "own/lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(each for each in sys.path if each.endswith("site-packages")))
    return folder


def test_the_wheel_holds_what_the_package_reads(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    assert {str(each.relative_to(source)) for each in source.rglob("*") if each.is_file() and _kept(each)} <= inside
    for needed in ("py.typed", "__init__.pyi", "render/page.css", "render/page.js", "render/page.html.j2"):
        assert f"ratherthan/{needed}" in inside
    assert "ratherthan/zoo/weights/mnist.safetensors" in inside
    assert not [each for each in inside if "tests" in each]


def _kept(path: Path) -> bool:
    """Not what git ignores."""
    return "__pycache__" not in path.parts and path.suffix not in (".pyc", ".egg-info")


def test_what_an_index_shows(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel)
    (name,) = (each for each in held.namelist() if each.endswith("/METADATA"))
    about = held.read(name).decode()
    assert f"\nVersion: {ratherthan.__version__}\n" in about
    assert {"Homepage", "Source", "Changelog", "Documentation"} <= set(re.findall(r"^Project-URL: (\w+),", about, re.M))
    targets = re.findall(r"\]\(([^)\s]+)\)", about)
    assert len(targets) > 10
    assert all(each.startswith(("https://", "#")) for each in targets), "an index has no files beside the page"
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", about)
    base = "https://raw.githubusercontent.com/ratherthan/ratherthan/main/"
    assert pictures
    assert all((ROOT / each.removeprefix(base)).is_file() for each in pictures)


def test_relative_links_of_all_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            to = page.parent / path if path else page
            assert to.exists(), f"{page}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.*)", to.read_text(), re.M)
                assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in heads}, target


def test_it_works_elsewhere(elsewhere: Path) -> None:
    command = elsewhere / "own/bin/ratherthan"
    told = run(command, "--version", folder=elsewhere)
    assert told.stdout == f"ratherthan {ratherthan.__version__}\n", told.stderr
    assert run(elsewhere / "own/bin/python", "-m", "ratherthan", "--version", folder=elsewhere).stdout == told.stdout
    code = "import ratherthan as rt; rt.example().resize((28, 28)).convert('L').save('a.png'); print(rt.__file__)"
    where = run(elsewhere / "own/bin/python", "-c", code, folder=elsewhere)
    assert where.stdout.startswith(str(elsewhere)), where.stderr
    done = run(command, "explain", "a.png", "--model", "zoo:mnist", folder=elsewhere)
    assert done.returncode == 0, done.stderr
    assert "a.png: Why " in done.stdout
    assert (elsewhere / "explained/why.html").stat().st_size > 10_000


def test_importing_it_loads_nothing_heavy(elsewhere: Path) -> None:
    code = f"import sys, ratherthan; print(sorted({set(HEAVY)} & set(sys.modules)))"
    done = run(elsewhere / "own/bin/python", "-c", code, folder=elsewhere)
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.skipif("types" not in of_today(["types", "none"], 2), reason="another day's turn")
def test_type_checkers_see_its_types(elsewhere: Path) -> None:
    pytest.importorskip("mypy")
    lines = [
        "import ratherthan as rt", "why = rt.explain(rt.load('zoo:mnist'), 'a.png', foil=3)",
        "right: str = why.text(0)", "wrong: int = why.text(0)", "reveal_type(rt.Occlusion().size)",
    ]  # fmt: skip
    (elsewhere / "typed.py").write_text("\n".join(lines))
    (elsewhere / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,numpy.*,PIL.*,pandas.*]\nfollow_imports = skip\n")
    done = run(elsewhere / "own/bin/python", "-m", "mypy", "typed.py", folder=elsewhere)
    assert 'typed.py:4: error: Incompatible types in assignment (expression has type "str"' in done.stdout, done.stdout
    assert "typed.py:5: note: Revealed type is" in done.stdout
    assert "Any" not in done.stdout.splitlines()[1]
    assert "Found 1 error in 1 file" in done.stdout
