"""Processes that write tuning records: eight at once, or one after the other, each killed at some moment.

`python -m runtime.record_writer crowd|killed`; children are forked, so that only one process imports torch.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable

from sma_compiler.kernel.choices import Choices
from sma_compiler.runtime.records import Key, Record, save

CROWD, EACH, KILLS = 8, 12, 40


def record(who: str, number: int, *, verified: bool = True) -> Record:
    """Record `number` of a writer; its numbers follow from that, so that a mixture of two is seen."""
    key = Key("spec", "generator", f'{{"time":{number}}}', "float32", who, "2.13.0", "3.6.0", number % 2 == 1)
    choices = Choices.of({"forward": {"warps": 2 ** (number % 4)}})
    sizes = {"time": number}
    date = f"2026-11-22T00:00:{number % 60:02}Z"
    return Record(key, "op", "triton", "chunked", choices, number / 8, number / 4, 0.5, None, sizes, date, verified)


def write(who: str, numbers: Iterable[int], told: int) -> None:
    """Save records, and tell a pipe each one that is kept."""
    for number in numbers:
        save(record(who, number))
        os.write(told, bytes([number]))


def fork(who: str, numbers: Iterable[int]) -> tuple[int, int]:
    """A process that writes; its number, and the end of the pipe where it tells."""
    told, ours = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(who, numbers, ours)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(ours)
    return child, told


def crowd() -> list[int]:
    """The exit statuses of processes that wrote at once."""
    children = [fork(str(who), range(EACH))[0] for who in range(CROWD)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def killed() -> list[list[int]]:
    """What each of the processes that were killed had kept by then."""
    pauses = random.Random(0)
    kept = []
    for turn in range(KILLS):
        child, told = fork(str(turn), itertools.cycle(range(32)))
        first = os.read(told, 1)
        time.sleep(pauses.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rest = b""
        while more := os.read(told, 65536):
            rest += more
        kept.append(sorted({*first, *rest}))
    return kept


if __name__ == "__main__":
    print(json.dumps({"crowd": crowd, "killed": killed}[sys.argv[1]]()))
