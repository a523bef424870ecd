"""What panels are to each other: a method that factors one, the transform that this makes, and what is remembered of it.

A `Method` works on whole panels, a `TiledMethod` on panels in row blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.storage.matrix import Matrix

Facts = dict[str, Array]

#: A last change to a finished tile (i, k), or its upper rows, in place; a whole panel k is the tile (0, k).
Change = Callable[[int, int, Array], None]


@dataclass(frozen=True)
class Transform:
    """What a factored panel does to the others.

    Parameters
    ----------
    index : int
        j, of the panel.
    top : int
        The first row that it touches.
    panel : (m - top, b)
        The factored panel from that row on.
    facts : dict of arrays
        Small things beside it, such as pivots.
    whole : (m, b), optional
        All rows of the panel, where it could not be factored in its place.
    """

    index: int
    top: int
    panel: Array
    facts: Facts
    whole: Array | None = None

    def __sizeof__(self) -> int:
        """What Dask reckons with where it moves one."""
        return object.__sizeof__(self) + self.panel.nbytes


class Method(ABC):
    """A factorization: how one panel is factored, and what that does to another. Picklable.

    Attributes
    ----------
    all_row_blocks_offer : bool
        Whether every row block of a panel has a part in every step on a later one, and not only the one on the diagonal.
    """

    all_row_blocks_offer = False

    def first_row(self, top: int) -> int:
        """The first row that is kept of a panel whose diagonal begins at row ``top``."""
        return 0

    @abstractmethod
    def factor(self, panel: Array, top: int) -> Facts:
        """Factor the rows ``top:`` of a panel (m, b) in place; what else is to be remembered."""

    @abstractmethod
    def apply(self, transform: Transform, panel: Array, top: int) -> None:
        """Apply a factored panel to a panel whose diagonal begins at row ``top``, in place."""

    def settle(self, facts: Sequence[Facts], first: int, grid: PanelGrid) -> list[tuple[RowMove | None, Facts]]:
        """For finished panels ``first, first + 1, ...``: how the rows of each moved afterwards, and its facts from now on."""
        return [(None, fact) for fact in facts]

    def n_facts(self, b: int) -> int:
        """Elements of the facts of a panel of b columns, less what grows with b alone."""
        return 0

    @abstractmethod
    def factor_flops(self, m: int, b: int) -> float: ...

    @abstractmethod
    def apply_flops(self, m: int, b: int, width: int) -> float: ...


class Reversible(Method):
    """A factorization whose transforms can be undone: their product, the orthogonal factor, can be formed."""

    @abstractmethod
    def unapply(self, transform: Transform, panel: Array) -> None:
        """Apply the inverse of a transform to a panel, in place."""

    @abstractmethod
    def form(self, transform: Transform, panel: Array) -> None:
        """Apply the inverse of a transform to the first columns of the identity, and leave them in ``panel`` (m - top, b)."""


@dataclass(frozen=True)
class Place:
    """Where a tile lies in its panel.

    Parameters
    ----------
    block : int
        i, of its row block.
    first : int
        Its first row at the panel's diagonal or below; 0 in the blocks below the diagonal.
    diagonal : bool
        Whether the panel's diagonal begins in it.
    """

    block: int
    first: int
    diagonal: bool


@dataclass(frozen=True)
class TileTransform:
    """What a factored tile does to the tiles right of it.

    Parameters
    ----------
    index : int
        j, of the panel.
    place : Place
    tile : (m_i, b)
    facts : dict of arrays
        The choice of the panel.
    """

    index: int
    place: Place
    tile: Array
    facts: Facts


class Election(NamedTuple):
    """What the row blocks of a panel found together.

    Parameters
    ----------
    choice : dict of arrays
        What is remembered of the panel, and what later panels need of it.
    shares : sequence of dict
        What each row block needs to finish its tile, in the order of the candidates.
    book : dict of arrays
        For the next step.
    """

    choice: Facts
    shares: Sequence[Facts]
    book: Facts


class TiledMethod(ABC):
    """A factorization on row blocks. Picklable; only `propose`, `accept` and `update` change their tile."""

    #: The same factorization on whole panels, for its costs.
    whole: Method
    #: Whether a step leaves the rows above its diagonal alone; else every row block takes part in every step.
    downward = True

    def begin(self, grid: PanelGrid) -> Facts:
        """The book that goes from step to step."""
        return {}

    @abstractmethod
    def propose(self, tile: Array, book: Facts, place: Place) -> Facts:
        """What a tile brings to the election, b rows at most; may begin to factor the tile, in place."""

    @abstractmethod
    def elect(self, candidates: Sequence[Facts], book: Facts, top: int) -> Election:
        """Factor what the row blocks propose for the panel whose diagonal begins at row ``top``."""

    @abstractmethod
    def accept(self, tile: Array, candidate: Facts, share: Facts, place: Place) -> None:
        """Finish a tile of the panel, in place."""

    def offering(self, blocks: Sequence[int]) -> Sequence[int]:
        """Which of the row blocks that take part in an update offer something."""
        return blocks

    @abstractmethod
    def offer(self, transform: TileTransform, tile: Array) -> Array:
        """What a row block gives to the update of a panel, from its factored tile and its tile of that panel."""

    @abstractmethod
    def meet(self, choice: Facts, offers: Sequence[Array]) -> Array:
        """What the offers make together."""

    @abstractmethod
    def update(self, transform: TileTransform, tile: Array, met: Array) -> None:
        """Apply a factored tile to a tile of its row block, in place."""

    def order(self, facts: Sequence[Facts], block: int, n_rows: int) -> Array | None:
        """How the rows of a row block moved in these steps: position p holds what was at ``order[p]``."""
        return None

    def settle(self, facts: Sequence[Facts], grid: PanelGrid) -> list[Facts]:
        """The facts of a finished group, whose tiles are stored in the order that the rows had at its end."""
        return list(facts)

    def offer_flops(self, m: int, b: int, width: int) -> float:
        """The part of ``whole.apply_flops`` that is done by `offer`."""
        return 0.0


@dataclass(frozen=True)
class RowMove:
    """``A[targets] = A[sources]``, both of them row numbers."""

    targets: Array
    sources: Array


class Seen(NamedTuple):
    """What was measured of a matrix while it was read.

    Parameters
    ----------
    products : (m, k)
        ``A probes``.
    largest : float
        The largest modulus of its entries.
    """

    products: Array
    largest: float

    @classmethod
    def of(cls, parts: Sequence[Seen]) -> Seen:
        """What is known of columns that lie side by side; sums that overflow say that these are to be scaled."""
        with np.errstate(over="ignore", invalid="ignore"):
            products = sum((part.products for part in parts[1:]), parts[0].products)
        return cls(products, max(part.largest for part in parts))


@dataclass(frozen=True)
class Factored:
    """A finished factorization.

    Parameters
    ----------
    grid : PanelGrid
    matrix : Matrix (m, n)
        The factors, panel by panel, as LAPACK stores them.
    facts : list of dict
        Beside each factored panel.
    """

    grid: PanelGrid
    matrix: Matrix
    facts: list[Facts]

    def transform(self, j: int) -> Transform:
        """Read the transform of panel j."""
        top, columns = self.grid.columns(j)[0], self.grid.columns(j)
        return Transform(j, top, self.matrix.region((top, self.matrix.shape[0]), columns), self.facts[j])


def largest_modulus(block: Array) -> float:
    """The largest modulus of the entries; 0 where there are none."""
    if block.size == 0:
        return 0.0
    return float(np.abs(block).max() if block.dtype.kind == "c" else max(block.max(), -block.min()))
