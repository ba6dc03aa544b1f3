"""One convention for how far a long job is."""

from __future__ import annotations

import pytest

from ratherthan.progress import Progress, reporter


def drawn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], progress: Progress) -> str:
    """What a job of three steps writes on a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with reporter(progress, "counting") as report:
        for step in range(3):
            report(step + 1, 3, "loss 0.5")
    written = capsys.readouterr()
    assert written.out == ""
    return written.err


def test_a_callable_hears_every_step_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[int, int]] = []
    assert drawn(monkeypatch, capsys, lambda done, total: steps.append((done, total))) == ""
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("progress", [None, False])
def test_silence_is_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], progress: Progress
) -> None:
    assert drawn(monkeypatch, capsys, progress) == ""


def test_true_draws_a_bar_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bar = drawn(monkeypatch, capsys, True)
    assert "counting" in bar
    assert "3/3" in bar
    assert "loss 0.5" in bar


def test_no_bar_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(True, "counting") as report:
        report(1, 3)
    assert capsys.readouterr().err == ""


def test_what_a_callable_raises_ends_the_job() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reporter(stop, "counting") as report:
        report(1, 3)
