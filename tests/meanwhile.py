"""What happens while a command of this process watches."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable

from click.testing import Result
from gate import PATIENCE_SECONDS


def until_said(*words: str) -> None:
    """Wait until the command that runs meanwhile has said each of these."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (isinstance(caught := sys.stdout.buffer, io.BytesIO) and all(word.encode() in caught.getvalue() for word in words)):
        assert time.monotonic() < end, words
        time.sleep(0.02)


def meanwhile(command: Callable[[], Result], happens: Callable[[], object]) -> Result:
    """What a command says while something happens."""
    thread = threading.Thread(target=happens)
    thread.start()
    result = command()
    thread.join()
    return result
