"""What the workers of a running cluster compute with, beside this process."""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any

from dlscale import __version__
from dlscale.engine.machine import blas_kernels
from dlscale.errors import SpecError


def libraries_here() -> dict[str, str]:
    """Versions in this process of what results depend on: dlscale, Python, NumPy, SciPy, and the kernels of BLAS."""
    import numpy
    import scipy

    import dlscale

    return {
        "dlscale": dlscale.__version__,
        "Python": platform.python_version(),
        "NumPy": numpy.__version__,
        "SciPy": scipy.__version__,
        "BLAS": blas_kernels(),
    }


def compare_workers(client: Any, address: str) -> tuple[str, ...]:
    """Ask all workers for their libraries.

    Returns
    -------
    tuple of str
        A note for each library of which they, or this process, have another version: the bits of an answer may depend on it.

    Raises
    ------
    SpecError
        If one cannot run dlscale, or runs another version of it.
    """
    try:
        answers = client.run(libraries_here, on_error="return", wait=True)
    except (OSError, TimeoutError) as error:
        raise SpecError(f"cluster: the workers of {address} do not answer ({error}).") from error
    own = libraries_here()
    for worker, answer in sorted(answers.items()):
        if isinstance(answer, BaseException):
            why = f"{type(answer).__name__}: {answer}"
            raise SpecError(f"cluster: the worker {worker} cannot run dlscale ({why}); install version {__version__} there.")
        if answer["dlscale"] != own["dlscale"]:
            raise SpecError(
                f"cluster: the worker {worker} runs dlscale {answer['dlscale']}, and this is {own['dlscale']}; "
                "install the same version on both sides."
            )
    notes = []
    for name, version in own.items():
        found = Counter(answer[name] for answer in answers.values())
        if set(found) != {version}:
            there = ", ".join(f"{other} on {count}" for other, count in sorted(found.items()))
            notes.append(f"{name} is {version} here and, on the workers, {there}: bits of the answer may depend on it")
    return tuple(notes)
