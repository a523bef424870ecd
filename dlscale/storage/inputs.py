"""What a job reads: matrices by their roles, and the results of earlier jobs that it goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlscale.errors import CorruptionError, DlscaleError, InputError, NonFiniteError
from dlscale.storage.files.kept import Keeping, drop_kept
from dlscale.storage.groups import open_arrays, result_attributes
from dlscale.storage.integrity import check_chunks, require_numbers
from dlscale.storage.labels.names import AXES, COLOR, Labels
from dlscale.storage.labels.stored import names_at
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix, View
from dlscale.storage.signatures import Signature
from dlscale.storage.zarr_stores import look_first


@dataclass(frozen=True)
class StoredResult:
    """The result group of an earlier job.

    Parameters
    ----------
    uri : str
    attributes : dict
        What its job wrote: kind, spec, plan, certificate, estimates, notes.
    """

    uri: str
    attributes: Mapping[str, Any]

    @classmethod
    def open(cls, uri: str) -> StoredResult:
        """Open the result at a path or URL.

        Raises
        ------
        InputError
            If no finished result is there.
        """
        uri = uri.removeprefix("file://")
        look_first(uri)
        attributes = result_attributes(uri)
        if attributes is None:
            raise InputError(f"There is no result of a dlscale job at {uri}; give the path of one, such as results/a.zarr.")
        return cls(uri, attributes)

    @property
    def kind(self) -> str:
        return str(self.attributes["kind"])

    @property
    def arrays(self) -> dict[str, Any]:
        """Every array but labels of rows and columns, by its name, all of plain numbers; ``array[...]`` brings one to memory."""
        arrays = {name: array for name, array in open_arrays(self.uri).items() if name not in (*AXES, COLOR)}
        for name, array in arrays.items():
            require_numbers(array, f"{self.uri}/{name}")
        return arrays

    def read(self, name: str) -> NDArray[Any]:
        """One array as a whole.

        Raises
        ------
        InputError
            If the result has no such array.
        CorruptionError
            If its bytes cannot be decoded.
        """
        try:
            return np.asarray(self.arrays[name][...])
        except KeyError:
            raise InputError(f"{self.uri} has lost its array {name!r}; run its job anew.") from None
        except DlscaleError:
            raise
        except Exception as error:  # each codec library raises its own exception type for damaged bytes
            raise CorruptionError(
                f"{self.uri}/{name} cannot be decoded ({type(error).__name__}: {error}); run its job anew."
            ) from error

    @property
    def labels(self) -> Labels:
        """What it calls the rows and columns of the matrix that it was computed of."""
        return Labels.of(names_at(f"{self.uri}/{axis}") for axis in AXES)

    def matrix(self, name: str) -> Matrix:
        """One array of at most two dimensions, to be read by blocks; one dimension is a column."""
        return open_matrix(f"{self.uri}/{name}", vectors=True)

    def check(self) -> Signature:
        """Look up every chunk of every array (MissingChunkError); what another look can be compared with."""
        return Signature.joined({name: check_chunks(array, f"{self.uri}/{name}") for name, array in self.arrays.items()})

    def describe(self) -> dict[str, Any]:
        """Facts for a plan."""
        arrays = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in self.arrays.items()}
        return {"uri": self.uri, "kind": self.kind, "job": self.attributes.get("job"), "arrays": arrays}


class Inputs(Mapping[str, Matrix]):
    """The inputs of a job by role: ``inputs["matrix"]``, ``inputs.get("rhs")``; results of earlier jobs in ``results``.

    Parameters
    ----------
    matrices : mapping of role to Matrix
        Optional roles that were not given are absent.
    results : mapping of role to StoredResult
    signatures : mapping of role to Signature
        What each was when its chunks were looked up; of what is in memory there is none.
    """

    def __init__(
        self,
        matrices: Mapping[str, Matrix],
        results: Mapping[str, StoredResult] | None = None,
        signatures: Mapping[str, Signature] | None = None,
    ) -> None:
        self._matrices = dict(matrices)
        self.results: Mapping[str, StoredResult] = dict(results or {})
        self.signatures: Mapping[str, Signature] = dict(signatures or {})

    def __getitem__(self, role: str) -> Matrix:
        return self._matrices[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)

    def inexact(self) -> list[str]:
        """The matrices in which this process met integers that double precision does not hold."""
        return sorted(set().union(*(matrix.inexact() for matrix in self._matrices.values())))

    @contextmanager
    def kept(self, job: str, *, n_bytes_read: int, n_bytes_spare: int) -> Iterator[None]:
        """Let processes keep what they read of matrices in buckets for the body, if a job reads them more than once.

        Parameters
        ----------
        job : str
        n_bytes_read : int
            In all passes of the job.
        n_bytes_spare : int
            What a process may keep: its memory less what the job takes of it.
        """
        for matrix in self.values():
            if n_bytes_spare > 0 and n_bytes_read >= 2 * matrix.n_stored_bytes:
                matrix.keep(Keeping(job, n_bytes_spare))
        try:
            yield
        finally:
            drop_kept(job)

    def require_unchanged(self) -> None:
        """Look at every input again; an answer that was computed while one changed is one of neither.

        Raises
        ------
        InputError
            Naming the input, and how it differs from what it was.
        """
        for role, before in self.signatures.items():
            source = self.results[role] if role in self.results else self._matrices[role]
            now = source.check()
            if now is not None and now.digest != before.digest:
                raise InputError(
                    f"input.{role}: {source.uri} was changed while the job read it ({before.changed(now)}), and the answer "
                    "would be of neither; run the job anew."
                )

    def naming(self, error: Exception) -> Exception:
        """The same; of an entry that is not finite with what its column is called, where the matrix that holds it says so."""
        for role, matrix in self.items():
            if not isinstance(error, NonFiniteError) or error.matrix not in ("Input", f"input.{role}", matrix.uri):
                continue
            while isinstance(matrix, View):
                matrix = matrix.base
            i, j, names = error.row, error.column, matrix.labels.column
            if names is None or i >= matrix.shape[0] or j >= matrix.shape[1]:
                continue
            if not np.isfinite(matrix.region((i, i + 1), (j, j + 1))).all():
                named = NonFiniteError(i, j, error.value, error.matrix, names[j : j + 1][0])
                return named.with_traceback(error.__traceback__)
        return error

    def describe(self) -> dict[str, dict[str, Any]]:
        """Facts about each input for a plan, by role."""
        matrices = {role: matrix.describe() for role, matrix in self.items()}
        return matrices | {role: result.describe() for role, result in self.results.items()}
