"""Measured speed, each claim as a number or a ratio of one run: `make bench`, or `python -m tests.bench store`."""

from typing import NamedTuple


class Line(NamedTuple):
    """One measured number, and the bound that it is meant to keep, if any."""

    what: str
    value: float
    unit: str
    relation: str = ""
    bound: float = 0.0

    def __str__(self) -> str:
        text = f"{self.what:<48} {self.value:>10.4g} {self.unit}"
        if not self.relation:
            return text
        kept = self.value < self.bound if self.relation == "<" else self.value > self.bound
        return f"{text}   (bound {self.relation} {self.bound:g}: {'kept' if kept else 'MISSED'})"
