"""What takes time to read or to make is made while what came before it is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(items: Generator[T, None, None], n: int = 1) -> Generator[T, None, None]:
    """The same, the next n of them being made, one after the other, while one is used."""
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="dlscale-ahead") as maker:
        following = deque(maker.submit(next, items, None) for _ in range(n))
        try:
            while (item := following.popleft().result()) is not None:
                following.append(maker.submit(next, items, None))
                yield item
        finally:
            maker.shutdown(cancel_futures=True)


def worked_ahead(items: Generator[S, None, None], work: Callable[[S], T], *, n_threads: int) -> Generator[T, None, None]:
    """What is made of items that come `ahead`, in their order, by so many threads; an error behind what comes before it."""
    waiting: deque[Future[T]] = deque()
    failure: Exception | None = None
    with closing(ahead(items)) as made, ThreadPoolExecutor(n_threads, thread_name_prefix="dlscale-work") as workers:
        while True:
            try:
                item = next(made, None)
            except Exception as error:
                failure = error
                break
            if item is None:
                break
            waiting.append(workers.submit(work, item))
            if len(waiting) > 2 * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    if failure is not None:
        raise failure
