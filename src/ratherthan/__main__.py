"""The entry point: Ctrl-C is understood before anything slow is imported, and until the last line is written."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

_SOON = 0.001  # seconds: of what follows an import, nothing is to be done in this time


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _interrupted)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _interrupted)
        sys.unraisablehook = _unraisable
    try:
        from ratherthan.app.cli import main

        main()
    except KeyboardInterrupt:
        _end()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all that could be stopped is done, or has been stopped
        if hasattr(signal, "setitimer") and signal.setitimer(signal.ITIMER_REAL, 0)[0]:
            _end()  # it was to be raised in a moment; an alarm while Python ends would kill it
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # full or closed, as was told: Python is not to try it again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not in an import: it would leave half a module, or be lost in native code."""
    importer = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            importer = frame.f_back
        frame = frame.f_back
    if importer is not None and importer.f_code.co_filename.startswith(_FIRST):
        _end()  # a command imports before it begins: there is nothing to be left half done
    if importer is None or not hasattr(signal, "setitimer"):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, _SOON)


def _unraisable(lost: Any) -> None:
    """Raise a KeyboardInterrupt again that fell into a destructor, where Python drops it."""
    if lost.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _SOON)
    else:
        sys.__unraisablehook__(lost)


def _end() -> None:
    os.write(2, b"error: stopped by Ctrl-C\n")
    os._exit(130)


_FIRST = (__file__, os.path.join(os.path.dirname(__file__), "app", ""))

if __name__ == "__main__":
    main()
