"""Ctrl-C at any moment, a parent that is killed: with real processes and real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ratherthan.errors import InputError, told_as

LINE = "error: stopped by Ctrl-C"
START = "import sys; sys.argv[0] = 'ratherthan'; from ratherthan.__main__ import main; "


def run(code: str, *arguments: object, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 13:16] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    return tmp_path / "one.png"


# not imported by a command itself, so that the signal waits until the import is over
BY_OTHERS = ("ratherthan.attribution.explain", "ratherthan.zoo.architectures")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("typer", "doctor"),  # before there is a command line
        ("numpy", "doctor"),  # half of numpy is worse than none
        ("torch", "explain"),
        ("ratherthan.attribution.explain", "explain"),
        ("ratherthan.zoo.architectures", "explain"),
    ],
)
def test_while_modules_are_imported_it_is_one_line(module: str, command: str, digit: Path, tmp_path: Path) -> None:
    """The signal arrives just as the module is looked for: all of its import lies ahead."""
    at_once = (
        "import atexit, os, signal\n"
        "atexit.register(print, 'late', file=sys.stderr)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            sys.meta_path.remove(self); os.kill(os.getpid(), signal.SIGINT)\n"
    )
    arguments = [command, digit, "-m", "zoo:mnist", "--out", tmp_path / "out"] if command == "explain" else [command]
    with run(f"{START}\n{at_once}sys.meta_path.insert(0, Finder())\nmain()", *arguments) as process:
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 130)
    line, *late = err.splitlines()
    assert line.startswith(LINE)
    # of what a command imports, none is waited for; what others do may still be followed by what a command imports
    assert late in ([], ["late"]) if module in BY_OTHERS else late == []
    assert not (tmp_path / "out").exists()


def test_behind_another_error_it_is_not_lost() -> None:
    """Native code that calls Python makes an error of its own of it."""

    def native() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    with pytest.raises(KeyboardInterrupt), told_as(InputError, "cannot read it", Exception):
        native()


def test_in_a_destructor_it_is_not_lost() -> None:
    """Python drops what is raised there."""
    code = (
        "import os, signal, time\n"
        "from ratherthan.app import doctor\n"
        "class Dying:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01)\n"
        "def look():\n"
        "    Dying(); time.sleep(600); return {}\n"
        "doctor.look = look\n"
    )
    with run(f"{START}\n{code}main()", "doctor") as process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (out, err.strip(), process.returncode) == ("", LINE, 130)


def test_once_all_is_done_there_is_nothing_to_stop() -> None:
    code = "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT)); "
    with run(START + code + "main()", "--version") as process:
        out, err = process.communicate(timeout=60)
    assert out.startswith("ratherthan ")
    assert (err, process.returncode) == ("", 0)


def test_a_training_that_is_stopped_leaves_no_draft(tmp_path: Path) -> None:
    """The signal arrives while the first checkpoint is written."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(12):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(images / f"{i}.png")
    code = (
        "import os, signal\n"
        "sync = os.fsync\n"
        "def stopping(file): os.kill(os.getpid(), signal.SIGINT); sync(file)\n"
        "os.fsync = stopping\n"
    )
    out = tmp_path / "new" / "v.safetensors"
    arguments = ["train", "zoo:vae", "--data", images, "--epochs", 2, "--out", out]
    with run(f"{START}\n{code}main()", *arguments) as process:
        _, err = process.communicate(timeout=120)
    assert (err.strip(), process.returncode) == (
        f"{LINE}; the same command goes on after the last finished epoch",
        130,
    )
    assert list(out.parent.iterdir()) == []


def test_workers_whose_parent_is_killed_as_they_begin_end_by_themselves(tmp_path: Path) -> None:
    """A worker that has not looked for its parent yet takes the one it finds for it."""
    code = (
        "import os, signal, sys, time, torch\n"
        "from ratherthan.data import dataset\n"
        "from ratherthan import ArrayReader, Dataset, data\n"
        "import numpy\n"
        "begin = dataset.ending_with\n"
        "def late(*given):\n"
        "    print(os.getpid(), flush=True); time.sleep(1); begin(*given); time.sleep(1)\n"
        "dataset.ending_with = late\n"
        "some = Dataset('some', ('a',), tuple('abcdefgh'), (0,) * 8, ArrayReader(numpy.zeros((8, 4, 4), 'uint8')))\n"
        "list(data.batches(some, 1, 1))\n"
    )
    with run(code) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
            state = Path(f"/proc/{worker}/stat")
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return  # ended; whoever has adopted it has not noticed yet
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker was still there after ten seconds")
