"""Measured speed, each claim as a number or a ratio of one run: `make bench`, or `python -m tests.bench store`."""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

DECADES = 2  # of the largest sizes: below them a cost that does not grow hides the one that does


def verdict(value: float, relation: str, bound: float) -> str:
    """Whether a number keeps its bound; nothing where it has none."""
    if not relation:
        return ""
    kept = value < bound if relation == "<" else value > bound
    return f"{relation} {bound:g}: {'kept' if kept else 'MISSED'}"


class Line(NamedTuple):
    """One measured number, the bound that it is meant to keep, and the peer that it was compared with, if any."""

    what: str
    value: float
    unit: str
    relation: str = ""
    bound: float = 0.0
    peer: str = ""

    @property
    def verdict(self) -> str:
        return verdict(self.value, self.relation, self.bound)

    @property
    def number(self) -> str:
        return "" if math.isnan(self.value) else f"{self.value:.4g} {self.unit}".strip()

    def __str__(self) -> str:
        notes = [self.peer and f"against {self.peer}", self.verdict and f"bound {self.verdict}"]
        return f"{self.what:<60} {self.number:<16} {'; '.join(filter(None, notes))}".rstrip()


class Growth(NamedTuple):
    """Cost against size, with the largest exponent that is meant to hold, if any."""

    what: str
    unit: str
    sizes: list[int]
    costs: list[float]
    bound: float | None = None

    @property
    def exponent(self) -> float:
        """The least-squares slope of log cost on log size over the last two decades of sizes."""
        large = np.array(self.sizes) * 10**DECADES >= max(self.sizes)
        return float(np.polyfit(np.log(self.sizes)[large], np.log(self.costs)[large], 1)[0])

    @property
    def verdict(self) -> str:
        return "" if self.bound is None else verdict(self.exponent, "<", self.bound)

    def __str__(self) -> str:
        points = ", ".join(f"{size:,}: {cost:.3g}" for size, cost in zip(self.sizes, self.costs, strict=True))
        note = self.verdict and f" (bound {self.verdict})"
        return f"{self.what}: grows with exponent {self.exponent:.2f}{note}\n   {self.unit} by size: {points}"


Benchmark = Callable[[], Iterator[Line | Growth]]


def absent(peer: str, remedy: str) -> Line:
    """The line in place of a comparison whose peer cannot be imported."""
    return Line(f"{peer} is not installed: {remedy}", math.nan, "")


def alternated(*calls: Callable[[], object], repeats: int = 5) -> list[float]:
    """CPU seconds of the fastest of several rounds for each call, after one round that warms up.

    The calls take turns, so that a machine that is busy for a while slows all of them; each must run in one thread.
    """
    seconds = [math.inf] * len(calls)
    for turn in range(repeats + 1):
        for index, call in enumerate(calls):
            start = time.process_time()
            call()
            if turn:
                seconds[index] = min(seconds[index], time.process_time() - start)
    return seconds


def best(call: Callable[[], object], repeats: int = 15) -> float:
    """CPU seconds of the fastest of several calls after one that warms up."""
    return alternated(call, repeats=repeats)[0]


def section(name: str, benchmark: Benchmark, results: list[Line | Growth]) -> str:
    """The results of one benchmark as a section in Markdown."""
    text = [f"## {name}", *filter(None, [(benchmark.__doc__ or "").strip()])]
    lines = [result for result in results if isinstance(result, Line)]
    if lines:
        rows = [(line.what.strip(), line.number, line.verdict, line.peer) for line in lines]
        text.append(table(("measured", "value", "bound", "compared with"), rows))
    for growth in (result for result in results if isinstance(result, Growth)):
        numbers = zip(growth.sizes, growth.costs, strict=True)
        text.append(f"{growth.what}: exponent {growth.exponent:.2f} {growth.verdict and f'({growth.verdict})'}".strip())
        text.append(table(("size", growth.unit), [(f"{size:,}", f"{cost:.3g}") for size, cost in numbers]))
    return "\n\n".join(text)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))
