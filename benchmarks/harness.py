"""Running two variants alternately, and what comes of it: a figure."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from sqlalchemy import URL, create_engine, text

DIM = 384
SETTINGS = "shared_buffers = '1GB'\n"
"""Of a server of our own: PostgreSQL's default has no room for an index of 100,000 vectors."""
QUERIES = 200
"""How many different query vectors a latency figure goes through."""


@dataclass(frozen=True)
class Floor:
    """What a figure's ratio has to reach, or must not exceed."""

    value: float
    at_most: bool = False

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.value if self.at_most else ratio >= self.value

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.value:g}"


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    A ratio with a floor "at least" says how many times faster ours is; "at most" how many times its duration ours
    takes.
    """

    group: str
    what: str
    against: str
    ours: str
    other: str
    ratio: float
    unit: str
    floor: Floor | None
    note: str = ""
    rows: int | None = None
    dim: int | None = DIM

    @property
    def is_met(self) -> bool | None:
        return None if self.floor is None else self.floor.is_met(self.ratio)

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of the figure: no more than another machine could say too."""
        return {
            **asdict(self),
            "ratio": float(f"{self.ratio:.3g}"),
            "floor": None if self.floor is None else str(self.floor),
            "met": self.is_met,
        }


@dataclass(frozen=True)
class Point:
    """How long one kind of search takes at one size, and which part of the true nearest it finds."""

    database: str
    method: str
    rows: int
    dim: int
    milliseconds: float
    recall: float

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "milliseconds": float(f"{self.milliseconds:.3g}"),
            "recall": float(f"{self.recall:.3f}"),
        }


@dataclass(frozen=True)
class Variant:
    """One of the two ways: what is timed, and what makes its argument before, untimed."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Comparison:
    """The durations of two variants that alternated, in seconds."""

    ours: float
    other: float
    ours_to_other: float
    """Median of the rounds' ratios, which drifts less than the ratio of the medians when the machine is busy."""

    def speed(self, group: str, what: str, against: str, rows: int, floor: float | None, note: str = "") -> Figure:
        """Return how many times faster ours is, with rates in rows per second."""
        return Figure(
            group,
            what,
            against,
            f"{rows / self.ours:,.0f} rows/s",
            f"{rows / self.other:,.0f} rows/s",
            1 / self.ours_to_other,
            "times as fast",
            None if floor is None else Floor(floor),
            note,
            rows,
        )

    def duration(
        self,
        group: str,
        what: str,
        against: str,
        floor: float | None,
        note: str = "",
        *,
        rows: int,
        dim: int | None = DIM,
    ) -> Figure:
        """Return how many times the other's duration ours takes."""
        return Figure(
            group,
            what,
            against,
            f"{self.ours * 1000:.3g} ms",
            f"{self.other * 1000:.3g} ms",
            self.ours_to_other,
            "times the duration",
            None if floor is None else Floor(floor, at_most=True),
            note,
            rows,
            dim,
        )


@dataclass
class Run:
    """The sizes of a run, and the resources that its programs share.

    Attributes:
        rows: number of rows, or None for each figure's own number.
        repeat: rounds of a long-running comparison.
        latency_rounds: rounds of a short one.
        million: whether the growth with the number of rows goes up to a million.
    """

    rows: int | None = None
    repeat: int = 5
    latency_rounds: int = 600
    million: bool = False
    _stack: ExitStack = field(default_factory=ExitStack)
    _database: URL | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def size(self, usual: int) -> int:
        """Return the number of rows for a figure that usually has ``usual``."""
        return usual if self.rows is None else min(usual, self.rows)

    @property
    def queries(self) -> int:
        """Return how many different query vectors to look for."""
        return QUERIES if self.rows is None else min(QUERIES, max(10, self.rows // 10))

    def compare(self, ours: Variant, other: Variant, *, rounds: int | None = None, warm_up: int = 1) -> Comparison:
        """Run both alternately, each round in the other order than the last."""
        durations: tuple[list[float], list[float]] = ([], [])
        pair = ((ours, durations[0]), (other, durations[1]))
        for number in range(warm_up + (rounds or self.repeat)):
            for variant, found in pair if number % 2 else reversed(pair):
                argument = variant.prepare()
                if rounds is None:
                    gc.collect()
                started = perf_counter()
                result = variant.run(argument)
                found.append(perf_counter() - started)
                del argument, result
        kept = [found[warm_up:] for found in durations]
        ratios = [a / b for a, b in zip(*kept, strict=True)]
        return Comparison(median(kept[0]), median(kept[1]), median(ratios))

    def compare_latency(self, ours: Variant, other: Variant) -> Comparison:
        """Run two short variants alternately, several hundred times."""
        return self.compare(ours, other, rounds=self.latency_rounds, warm_up=20)

    def postgresql(self) -> URL:
        """Return the URL of an empty PostgreSQL database with pgvector, the driver left open."""
        if self._database is None:
            from tests.support.postgresql import running_server

            server = self._stack.enter_context(running_server(SETTINGS))
            self._database = self._stack.enter_context(server.database())
        return self._database

    def server_versions(self) -> dict[str, str]:
        """Return the versions of PostgreSQL and its extension, if the run used them."""
        if self._database is None:
            return {}
        engine = create_engine(self._database.set(drivername="postgresql+psycopg"))
        with engine.connect() as connection:
            server = connection.scalar(text("SHOW server_version"))
            extension = connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
        engine.dispose()
        return {"PostgreSQL": str(server).split()[0]} | ({"pgvector extension": str(extension)} if extension else {})

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """Make a directory for database files, and remove it at the end."""
        with TemporaryDirectory(prefix="sqla-vector-") as name:
            yield Path(name)
