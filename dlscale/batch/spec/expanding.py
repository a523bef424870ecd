"""A job file with ``matrix:`` as the job files of its jobs.

    matrix:
      params.n_components: [10, 20, 40]
      params.solver: [randomized, covariance]

Each job has one value of every list, in all combinations; the list that stands first changes last.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dlscale.batch.document import Document, set_value
from dlscale.errors import SpecError

KEY = "matrix"
#: Jobs of one sweep. Each has its folder and, one after another, its process.
MAX_JOBS = 1000
MAX_KEYS = 50
_N_NAME_CHARACTERS = 50


def is_sweep(document: Document) -> bool:
    return KEY in document.data


def refuse_sweep(document: Document) -> None:
    """SpecError for a sweep where one job is meant."""
    if is_sweep(document):
        raise SpecError(f"{document.where((KEY,))}: {KEY}: makes a sweep of many jobs, which takes `dlscale submit`.")


def expand(document: Document) -> Iterator[tuple[dict[str, Any], Document]]:
    """The jobs of a sweep: the values that each has, by key, and its own job file.

    Raises
    ------
    SpecError
        If the section is no mapping of keys to lists, has too many combinations, or lets all jobs write to one place.
    """
    axes = _axes(document)
    base = replace(document, data={key: value for key, value in document.data.items() if key != KEY})
    if base.data.get("output") is not None and "output" not in axes:
        raise SpecError(
            f"{document.where(('output',))}: output: would be the same place for all jobs of the sweep; leave it out, so that "
            f"each keeps its result in its own folder, or list a place for each under {KEY}."
        )
    n_jobs = math.prod(map(len, axes.values()))
    if n_jobs > MAX_JOBS:
        raise SpecError(f"{document.where((KEY,))}: {KEY}: has {n_jobs:,} combinations; a sweep has at most {MAX_JOBS:,} jobs.")
    stem = str(base.data.get("name") or base.data.get("kind") or "sweep")[:_N_NAME_CHARACTERS].rstrip("-")
    first = set_value(base, ["name"], stem, document.where(("name",)))
    for key, listed in axes.items():
        first = set_value(first, key.split("."), listed[0], document.where((KEY, key)))
    # What stands in the file was not given by whoever runs it.
    first = replace(first, given=document.given)
    for number, combination in enumerate(itertools.product(*axes.values()), 1):
        values = dict(zip(axes, combination, strict=True))
        named = {"name": f"{stem}-{number:0{len(str(n_jobs))}d}", **values}
        yield values, replace(first, data=_with_values(first.data, named))


def _with_values(data: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Data with keys set that it has: what lies beside them is shared, not copied for each of a thousand jobs."""
    made = dict(data)
    for key, value in values.items():
        *around, last = key.split(".")
        section = made
        for name in around:
            section[name] = section = dict(section[name])
        section[last] = value
    return made


def _axes(document: Document) -> Mapping[str, list[Any]]:
    section = document.data[KEY]
    if not isinstance(section, dict) or not section:
        raise SpecError(
            f"{document.where((KEY,))}: {KEY}: must be a mapping of keys to lists, such as params.n_components: [10, 20]."
        )
    if len(section) > MAX_KEYS:
        raise SpecError(f"{document.where((KEY,))}: {KEY}: has {len(section):,} keys; a sweep varies at most {MAX_KEYS}.")
    for key, values in section.items():
        place = f"{document.where((KEY, key))}: {KEY}.{key}"
        if not isinstance(values, list) or not values:
            raise SpecError(f"{place}: must be a list of values; got {values!r}.")
        if not all(key.split(".")) or key.split(".")[0] in (KEY, "kind", "name"):
            raise SpecError(f"{place}: must be a key such as params.n_components; kind and name are the same for all jobs.")
        written = Counter(json.dumps(value) for value in values)
        if repeated := [text for text, n in written.items() if n > 1]:
            raise SpecError(f"{place}: has {min(repeated)} twice.")
    nested = [key for key in section for other in section if key.startswith(f"{other}.")]
    if nested:
        raise SpecError(f"{document.where((KEY, nested[0]))}: {KEY}.{nested[0]}: lies in another key of {KEY}.")
    return section
