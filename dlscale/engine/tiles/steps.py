"""The steps of a factorization as tasks: what the loop asks for, whether workers hold whole panels or row blocks of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.groups import Group, Key, TaskGraph
from dlscale.engine.tiles.methods import Facts, Method, Seen
from dlscale.engine.tiles.work import Applying, Factoring, Filling

#: A `Method`, or a `TiledMethod`.
M = TypeVar("M")
#: What names the transform of a panel in a graph.
F = TypeVar("F")


class Steps(ABC, Generic[M, F]):
    """A method, and how what it does becomes tasks on the panels of a group.

    Attributes
    ----------
    method : Method or TiledMethod
    """

    method: M

    @property
    @abstractmethod
    def costs(self) -> Method:
        """The method on whole panels, for its costs."""

    def begin(self, grid: PanelGrid) -> Facts:
        """The book that goes from step to step."""
        return {}

    @abstractmethod
    def load(self, graph: TaskGraph[Factoring[M]]) -> None:
        """Read the panels of the group."""

    @abstractmethod
    def fetch(self, graph: TaskGraph[Applying[M]], j: int, *, priority: float) -> F:
        """Read the transform of a finished panel."""

    @abstractmethod
    def factor(self, graph: TaskGraph[Factoring[M]], j: int, *, priority: float) -> F:
        """Factor a panel of the group."""

    @abstractmethod
    def apply(self, graph: TaskGraph[Applying[M]], transform: F, j: int, k: int, *, priority: float) -> None:
        """Apply the transform of panel j to panel k of the group."""

    @abstractmethod
    def write(self, graph: TaskGraph[Filling[M]], facts: Sequence[Facts]) -> tuple[list[Key], list[Facts]]:
        """Write the panels of the group, the first of which were factored: the tasks, and the facts from now on."""

    @abstractmethod
    def together(self, group: Group[Factoring[M]], parts: Mapping[int, Seen]) -> Seen:
        """What all that was seen says of the columns of the group."""

    @abstractmethod
    def width(self, grid: PanelGrid) -> int:
        """Tasks of one step on one panel, about; a few at its beginning are not counted."""

    @abstractmethod
    def n_tasks(self, grid: PanelGrid) -> int:
        """Tasks of the largest graph."""

    @abstractmethod
    def n_moved(self, grid: PanelGrid, n_workers: int) -> float:
        """Entries that go from worker to worker."""


class ReversibleSteps(Steps[M, F]):
    """Steps of a method whose transforms can be undone.

    Attributes
    ----------
    own_share : float
        The part of its work that a transform does on the columns of the identity that have its own number.
    """

    own_share = 1.0

    @abstractmethod
    def identity(self, graph: TaskGraph[Filling[M]]) -> None:
        """Make the columns of the identity that are a group's panels, as far as `undo` does not."""

    @abstractmethod
    def undo(self, graph: TaskGraph[Applying[M]], transform: F, j: int, k: int, *, priority: float) -> None:
        """Apply the inverse of the transform of panel j to panel k of the group."""
