"""The same function for many files, in several processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[int, Result | None]]:
    """The number of each item and the function's result for it, as they come; None where its process died.

    A crash of a library ends a process, and with it the pool. The items that were in work then are tried again one by
    one, so that only the guilty one is lost. What the function raises is raised here.
    """
    waiting = deque(range(len(items)))
    while waiting:
        running: dict[Future[Result], int] = {}
        try:
            with _pool(min(processes, len(waiting))) as pool:
                while waiting or running:
                    while waiting and len(running) < processes:
                        running[pool.submit(function, items[waiting[0]])] = waiting[0]
                        waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield running.pop(future), result
        except BrokenProcessPool:
            for number in running.values():
                yield number, _alone(function, items[number])


def _alone(function: Callable[[Item], Result], item: Item) -> Result | None:
    try:
        with _pool(1) as pool:
            return pool.submit(function, item).result()
    except BrokenProcessPool:
        return None


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes: forked ones would inherit the threads of file systems. An interrupt ends them."""
    before = multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in before:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
