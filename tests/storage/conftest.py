"""A machine that stops at any chosen change of its disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest


class Crash(BaseException):
    """The machine stops here."""


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], bool]:
    """A function that runs an action and stops it at its n-th call that changes the disk; True if it finished before."""

    def run(n: int, action: Callable[[], Any]) -> bool:
        left = n

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:  # and so is every later one: a dead process cleans nothing up
                    raise Crash
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("mkdir", "replace", "rename", "fsync", "unlink", "rmdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                action()
            except Crash:
                return False
        return True

    return run
