"""Plans for elsewhere: what a job would take on a cluster that is not reached, with a matrix that is not there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dlscale.arrays import Array
from dlscale.batch.kinds import KINDS
from dlscale.batch.spec.sections import JobSpec
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.plan import NOMINAL_BYTES_PER_SECOND, Plan
from dlscale.errors import SpecError
from dlscale.host import n_cores
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Assumed:
    """What a plan takes for granted.

    Parameters
    ----------
    shape : (m, n), optional
        Of the matrix; that of the spec is not opened.
    facts : ClusterFacts, optional
        Of the cluster; that of the spec is not reached.
    """

    shape: tuple[int, int] | None = None
    facts: ClusterFacts | None = None

    @classmethod
    def from_options(cls, shape: str | None, workers: int | None, threads: int | None, memory: str | None) -> Assumed | None:
        """From the options ``--shape``, ``--workers``, ``--threads`` and ``--worker-memory``; None if none was given.

        Raises
        ------
        SpecError
            If an option has no meaning, alone or at all.
        """
        if shape is None and workers is None and threads is None and memory is None:
            return None
        from dlscale.batch.spec.sections import parse_pair

        m, n = parse_pair(shape, "--shape") if shape else (0, 0)
        if shape and min(m, n) < 1:
            raise SpecError(f"--shape: got {shape}; a matrix has at least one row and one column.")
        if workers is None and threads is None and memory is None:
            return cls((m, n))
        if workers is None or memory is None:
            raise SpecError("--workers and --worker-memory: give both, such as --workers 256 --worker-memory 64GB.")
        facts = ClusterFacts("assumed", workers, threads or n_cores(), _bytes(memory))
        return cls((m, n) if shape else None, facts)

    def inputs(self, spec: JobSpec) -> Inputs:
        """Inputs of this shape in place of those that a spec names: the first, and others that are as large or columns beside it.

        Raises
        ------
        SpecError
            If the job goes on from the result of another one.
        """
        assert self.shape is not None
        roles = list(spec.input.roles())
        if results := [role.name for role in KINDS[spec.kind].roles if role.result_of and role.name in roles]:
            raise SpecError(f"--shape: stands for a matrix, and input.{results[0]} is the result of a job; leave one out.")
        m, n = self.shape
        whole = {roles[0], *(role.name for role in KINDS[spec.kind].roles if role.like_first)}
        return Inputs({role: AssumedMatrix((m, n if role in whole else 1), role) for role in roles})

    def plan(self, plan: Plan) -> Plan:
        """A plan that says what it assumes, and reads at a nominal rate where nothing could be measured."""
        notes, rates = list(plan.notes), dict(plan.rates)
        if self.shape is not None:
            rates["read_bytes_per_second"] = NOMINAL_BYTES_PER_SECOND * plan.cluster.n_workers
            notes.append(f"of a matrix that is assumed, read at {NOMINAL_BYTES_PER_SECOND / 1e9:g} GB/s by each worker")
        if self.facts is not None:
            notes.append("for a cluster that is assumed, with cores as fast as this machine's")
        return replace(plan, rates=rates, notes=tuple(notes))


class AssumedMatrix(Matrix):
    """A matrix of which only the shape is known; float64, read equally well in any order, as ones."""

    any_range = True
    stored_dtype = np.dtype(np.float64)

    def __init__(self, shape: tuple[int, int], name: str = "matrix") -> None:
        self.shape, self.uri = shape, f"assumed {name}"

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        return np.ones((rows[1] - rows[0], columns[1] - columns[0]))


def _bytes(text: str) -> int:
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except ValueError:
        raise SpecError(f"--worker-memory: got {text!r}; allowed: a size such as 64GB.") from None
