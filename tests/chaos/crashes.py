"""Power cuts to order: a job in a forked process that dies at its n-th change of the disk.

The fork server has imported everything, so that a job of some dozen changes can be killed at each of them in seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Calls that change which files there are; the bytes within them are written under names that nobody reads.
CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir")

#: What a job and its report load.
IMPORTED = [
    *("dlscale.batch.run", "dlscale.cli.terminal", "dlscale.cli.main", "zarr"),
    *("matplotlib.figure", "matplotlib.style", "matplotlib.backends.backend_svg"),
]

_SECONDS = 240


def run_until(change: int | None, arguments: list[str], cwd: Path, *, after: bool = False) -> tuple[int, int]:
    """Run a command in a process of its own that SIGKILLs itself at its n-th change of the disk (None: never).

    Parameters
    ----------
    change : int or None
        Counted from 1.
    arguments : list of str
        Of the command line; the cluster must be ``threads``.
    cwd : Path
    after : bool
        Die when the change has been made, rather than before.

    Returns
    -------
    Exit code (-9 if killed), and the number of changes that were made.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    counted = context.Value("i", 0)
    process = context.Process(target=_command, args=(change, arguments, str(cwd), counted, after))
    process.start()
    process.join(_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{arguments} hung for {_SECONDS} s")
    return int(process.exitcode or 0), int(counted.value)


def _command(change: int | None, arguments: list[str], cwd: str, counted: Any, after: bool) -> None:
    os.chdir(cwd)
    silence = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    for name in CHANGES:
        setattr(os, name, _counting(getattr(os, name), change, counted, after))
    from dlscale.cli.main import commands

    commands(arguments)


def _counting(call: Callable[..., Any], change: int | None, counted: Any, after: bool) -> Callable[..., Any]:
    def counting(*arguments: Any, **options: Any) -> Any:
        with counted.get_lock():
            counted.value += 1
            now = counted.value == change
        if now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments, **options)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counting
