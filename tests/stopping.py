"""Ctrl-C at a given moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


class Stopped:
    """Counts the calls of what `at_call` makes."""

    calls = 0

    def at_call(self, number: int, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, but its call of this number, from 1 on, is where Ctrl-C is pressed."""

        @wraps(function)
        def stopped(*given: Any) -> Any:
            self.calls += 1
            if self.calls == number:
                raise KeyboardInterrupt
            return function(*given)

        return stopped
