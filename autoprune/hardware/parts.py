"""What a term of a latency table is: numbers of one kind of sublayer, and how much of each a sublayer has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from autoprune.space import Kind, SublayerPlan


class Flow(NamedTuple):
    """Tokens that enter a sublayer, and that it hands on, as shares of the prompt."""

    came: float = 1.0
    left: float = 1.0
    dropping: bool = False  # some block of a decoder hands on fewer

    def read(self, metric: str) -> float:
        """What enters the sublayer, as a share of all tokens that the metric is of: decoding is one token."""
        return 1.0 if metric == "decode" else self.came


WHOLE = Flow()


@dataclass(frozen=True)
class Part:
    """A number of a table: milliseconds of an option, or of what a name says.

    `after`: it is at least the part before it in its term. `signed`: it may be below zero.
    """

    kind: Kind
    name: str
    option: int = 0
    after: bool = False
    signed: bool = False

    @property
    def text(self) -> str:
        """Readable, e.g. `ffn width 128`."""
        return f"{self.kind} {self.name}" + (f" {self.option}" if self.option else "")


class Term(Protocol):
    """Some parts of one kind of sublayer, and how much of each a sublayer has."""

    @property
    def kind(self) -> Kind:
        """Of sublayer."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The numbers."""

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Of every part; the sublayer is not gone. Raises SettingError outside what was measured."""
