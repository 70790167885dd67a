"""Runs functions in threads, all at once, and with each of several numbers of torch's own threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs these functions in a thread each, all at once, and returns their results or raises their first error."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(i):
        barrier.wait()
        try:
            results[i] = calls[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def numbers_of_threads(*numbers: int) -> Iterator[int]:
    """Sets torch's number of threads to each of these in turn, and behind the last one to what it was."""
    before = torch.get_num_threads()
    try:
        for number in numbers:
            torch.set_num_threads(number)
            yield number
    finally:
        torch.set_num_threads(before)
