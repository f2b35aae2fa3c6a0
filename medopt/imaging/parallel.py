"""Many scans read at once, in order.

In processes, as not every decoder lets other threads work meanwhile: CharLS (JPEG-LS) keeps Python's lock, and two
threads were 1.1 times as fast as one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from medopt.core.errors import DataError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

ALONE_SECONDS = 0.2
"""What takes no longer is not worth the processes, which begin within 60 ms."""
MOST_WORKERS = 8
"""Each may hold a whole volume of 500 MB."""
Item = TypeVar("Item")
Made = TypeVar("Made")


def parallel_map(work: Callable[[Item], Made], items: Sequence[Item], workers: int | None = None) -> Iterator[Made]:
    """What `work` makes of each item, in the order of the items, and what it raises in their place.

    Those of the first moment are made here; those left by `workers` processes (None: one a core), each at most two
    ahead of whoever takes them. Results travel between processes, so they should be small. Raises DataError where a
    process was killed.
    """
    cores = os.cpu_count() or 1
    workers, done, begun = min(workers or cores, cores, MOST_WORKERS), 0, time.monotonic()
    while done < len(items) and (workers == 1 or time.monotonic() - begun < ALONE_SECONDS):
        yield work(items[done])
        done += 1
    if done == len(items):
        return
    try:
        for made, raised in _loader(work, items[done:], workers):
            if raised is not None:
                raise raised
            yield made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "A process that reads scans was killed, perhaps for want of memory. Free some, or leave out a scan that is "
            "too large to be read."
        ) from None


def _loader(work: Callable[[Item], Made], items: Sequence[Item], workers: int) -> DataLoader[Any]:
    """Torch's, whose processes end with this one, however that ends."""
    import torch  # not needed by who reads one scan
    from torch.utils.data import DataLoader

    return DataLoader(
        _Made(work, items),  # type: ignore[arg-type]  # what has a length and items is a data set
        batch_size=None,
        num_workers=min(workers, len(items)),
        collate_fn=_as_it_is,
        multiprocessing_context="fork",  # another would import for seconds
        generator=torch.Generator(),  # else it draws from the one that training draws from
    )


class _Made:
    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._work, self._items = work, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> tuple[Any, Exception | None]:
        try:
            return self._work(self._items[place]), None
        except Exception as error:  # as it is: torch would raise another one, with a traceback for its text
            return None, error


def _as_it_is(made: Any) -> Any:
    return made
