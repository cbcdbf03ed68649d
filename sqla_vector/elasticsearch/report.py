"""What a comparison of index and database found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["CheckReport", "Difference"]

Kind = Literal["missing", "extra", "stale"]


@dataclass(frozen=True)
class Difference:
    """A document that is not what its row is."""

    kind: Kind
    """``missing``: there is a row and no document; ``extra``: a document and no row; ``stale``: they differ."""
    id: str
    """The document's; of a row that cannot have one, the key as the outbox has it."""
    row_key: str | None
    """The row's key as the outbox has it, None if no row can have the id."""
    what: tuple[str, ...] = ()
    """The fields that differ, with ``_sqla_vector.hash`` and ``_sqla_vector.key``; or why there is no document."""
    routing: str | None = None
    """Of a document that somebody wrote with one; no sync does, so that it is ``extra``."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as what can be written as JSON."""
        return {**asdict(self), "what": list(self.what)}


@dataclass
class CheckReport:
    """What a comparison of index and database found."""

    index: str
    """The declared name."""
    rows: int = 0
    """Rows that were looked at."""
    documents: int = 0
    """Documents that were looked at."""
    missing: int = 0
    """Rows without a document."""
    extra: int = 0
    """Documents without a row."""
    stale: int = 0
    """Documents that differ from their row."""
    pending: int = 0
    """Documents that differ, and of whose rows there are entries that wait; they are no faults."""
    dead: int = 0
    """Documents that differ, and whose rows have a dead entry, which says why."""
    noted: int = 0
    """Differences that were to be repaired."""
    repaired: int = 0
    """Those of them that are."""
    examples: list[Difference] = field(default_factory=list)
    """The first differences."""
    seconds: float = 0.0
    is_complete: bool = False
    """Whether the end was reached."""

    @property
    def differences(self) -> int:
        """How many documents are not what they should be."""
        return self.missing + self.extra + self.stale

    @property
    def is_equal(self) -> bool:
        """Whether the index equals the database, apart from what waits in the outbox."""
        return self.is_complete and not self.differences and not self.dead

    def as_dict(self) -> dict[str, Any]:
        """Return it as what can be written as JSON."""
        found = {**vars(self), "differences": self.differences, "is_equal": self.is_equal}
        return {**found, "examples": [example.as_dict() for example in self.examples]}

    def add(self, differences: list[Difference], examples: int) -> None:
        """Count differences, and keep some of them.

        Args:
            differences: that were found.
            examples: how many are kept at most.
        """
        for one in differences:
            setattr(self, one.kind, getattr(self, one.kind) + 1)
        self.examples += differences[: max(examples - len(self.examples), 0)]

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("missing", "extra", "stale")}
        parts = [f"{number:,} {name}" for name, number in counts.items()]
        parts += [f"{self.pending:,} pending"] * (self.pending > 0) + [f"{self.dead:,} dead"] * (self.dead > 0)
        parts += [f"{self.repaired:,} of {self.noted:,} repaired"] * (self.noted > 0)
        end = "" if self.is_complete else "; stopped before the end"
        return f"{self.index}: {self.rows:,} rows, {self.documents:,} documents, {', '.join(parts)}{end}"
