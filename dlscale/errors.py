"""The exceptions that dlscale raises on purpose.

DlscaleError
├── SpecError               the job file or an argument is wrong; nothing was started (exit code 2)
│   └── DoesNotFitError     the plan needs more memory or disk than it was given
├── InputError              the matrix cannot be computed on (exit code 2)
│   ├── MissingChunkError   a chunk that the metadata promises is absent or truncated
│   └── NonFiniteError      a NaN or an infinity, with its row and column
├── CorruptionError         stored data fails its checksum (exit code 1)
├── StoreError              an object store refuses, or does not answer (exit code 1)
├── NumericalError          the mathematics cannot be completed as asked; also a numpy.linalg.LinAlgError (exit code 1)
│   └── OutOfRange          at this scale; another one is tried
├── CertificateError        the answer was computed and failed its own check (exit code 1)
├── StalledError            no progress within the stated time (exit code 1)
├── RankError               an MPI rank is lost, failed, or disagrees with the others (exit code 1)
└── Interrupted             SIGINT, SIGTERM or SIGHUP; checkpointed, can be resumed (exit code 75)

Every message says what was required, what was got and what to do about it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dlscale.showing import without_secrets

if TYPE_CHECKING:
    from dlscale.numerical_errors import NumericalError as NumericalError
    from dlscale.numerical_errors import OutOfRange as OutOfRange


def __getattr__(name: str) -> Any:
    """Load NumPy for the errors that are its own too; a command that computes nothing is done before NumPy is loaded."""
    if name not in ("NumericalError", "OutOfRange"):
        raise AttributeError(f"module 'dlscale.errors' has no attribute {name!r}")
    return getattr(import_module("dlscale.numerical_errors"), name)


class DlscaleError(Exception):
    """Base class of every error that dlscale raises on purpose; its message holds no password or signature of a URL."""

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(without_secrets(value) if isinstance(value, str) else value for value in arguments))


class SpecError(DlscaleError, ValueError):
    """A job file or an argument is wrong; no work was started."""

    exit_code = 2


class DoesNotFitError(SpecError):
    """The plan needs more memory or disk than the job was given."""


class InputError(DlscaleError, ValueError):
    """The input matrix cannot be computed on."""

    exit_code = 2


class MissingChunkError(InputError):
    """A chunk that the array's metadata promises is absent or truncated."""


class NonFiniteError(InputError):
    """The matrix holds a NaN or an infinity.

    Parameters
    ----------
    row, column : int
        Position of the first non-finite entry found, counted from 0.
    value : complex or float
        What stands there.
    matrix : str
        Which input it is, where there are several.
    name : str
        What the column is called; empty where that is not known.
    """

    def __init__(self, row: int, column: int, value: complex, matrix: str = "Input", name: str = "") -> None:
        called = f" ({name!r})" if name else ""
        super().__init__(
            f"{matrix} contains NaN or infinity: {value} at row {row}, column {column}{called}. "
            "Every entry must be finite; replace or drop the row and run again."
        )
        self.row, self.column, self.value, self.matrix, self.name = row, column, value, matrix, name

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[int, int, complex, str, str]]:
        return type(self), (self.row, self.column, self.value, self.matrix, self.name)


class ImportNote(UserWarning):
    """Something in an imported source was understood in a way that the user should know, such as a column left out."""


class InexactNote(UserWarning):
    """Integers were rounded, since double precision holds only those of 53 binary digits."""


class CorruptionError(DlscaleError):
    """Stored data fails its checksum."""


class StoreError(DlscaleError):
    """An object store refuses what is asked of it, or does not answer after several tries; what is there already stays."""


class CertificateError(DlscaleError):
    """The answer was computed, and it failed its own check."""


class StalledError(DlscaleError):
    """The job made no progress within the stated time."""


class RankError(DlscaleError):
    """An MPI rank died, failed, or was about to do something else than the others; its traceback is a note."""


class WorkersLostError(DlscaleError):
    """Workers were lost while panels were in their memory.

    Parameters
    ----------
    step : str
        Of the factorization.
    n_attempts : int
        How often it was begun.
    """

    def __init__(self, step: str, n_attempts: int = 1) -> None:
        super().__init__(f"Workers were lost in each of {n_attempts} attempts at {step}; look why they end, and resume the job.")


class Interrupted(DlscaleError):
    """SIGINT, SIGTERM or SIGHUP arrived; what was finished is checkpointed."""

    exit_code = 75
