"""Read many scans at once, in order.

In processes, because not every decoder lets other threads run: CharLS (JPEG-LS) keeps Python's lock, and two threads
were only 1.1 times as fast as one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from medopt.core.errors import DataError
from medopt.core.provenance import usable_cores

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

SERIAL_SECONDS = 0.2
"""Work that ends within this time is done in this process; starting others takes 60 ms."""
MAX_WORKERS = 8
"""Each may hold a whole volume of 500 MB."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(work: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None) -> Iterator[Result]:
    """`work` of each item, in the order of the items; what it raises is raised at its place.

    The first items are worked on in this process, those after `SERIAL_SECONDS` in `workers` processes (None: one per
    core), each at most two items ahead of the consumer. Results travel between processes, so keep them small. Raises
    DataError where a process was killed.

    >>> list(parallel_map(len, ["a", "bcd"]))
    [1, 3]
    """
    cores = min(os.cpu_count() or 1, usable_cores())
    workers, done, started = min(workers or cores, cores, MAX_WORKERS), 0, time.monotonic()
    while done < len(items) and (workers == 1 or time.monotonic() - started < SERIAL_SECONDS):
        yield work(items[done])
        done += 1
    if done == len(items):
        return
    try:
        for result, error in _loader(work, items[done:], workers):
            if error is not None:
                raise error
            yield result
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "A process that reads scans was killed, perhaps because memory ran out. Free some, or leave out a scan "
            "that is too large to be read."
        ) from None


def _loader(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> DataLoader[Any]:
    """Torch's loader: its processes end with this one, however this one ends."""
    import torch  # not needed for reading a single scan
    from torch.utils.data import DataLoader

    return DataLoader(
        _MappedItems(work, items),  # type: ignore[arg-type]  # a data set is anything with a length and items
        batch_size=None,
        num_workers=min(workers, len(items)),
        collate_fn=_unchanged,
        multiprocessing_context="fork",  # other methods would import for seconds
        generator=torch.Generator(),  # else it would draw from the generator of training
    )


class _MappedItems:
    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._work, self._items = work, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Any, Exception | None]:
        try:
            return self._work(self._items[index]), None
        except Exception as error:  # returned: torch would raise another one, with a traceback for its text
            return None, error


def _unchanged(value: Any) -> Any:
    return value
