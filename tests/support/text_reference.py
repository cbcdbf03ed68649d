"""What a text search must find: the meaning of a query, apart from how anything parses it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+(?:[\u0300-\u036f\u0591-\u05c7]+[^\W_]*)*")


def words_of(text: str | None) -> list[str]:
    """Return the words of a text in lower case."""
    return [word.lower() for word in WORD.findall(text or "")]


@dataclass(frozen=True)
class Term:
    """Words that must, or must not, stand beside each other."""

    words: tuple[str, ...]
    negated: bool = False

    def holds(self, texts: Iterable[str | None]) -> bool:
        wanted, found = [word.lower() for word in self.words], map(words_of, texts)
        size = len(wanted)
        there = any(text[i : i + size] == wanted for text in found for i in range(len(text)))
        return there is not self.negated


def matches(alternatives: Sequence[Sequence[Term]], *texts: str | None) -> bool:
    """Tell whether texts match a query: some alternative that wants something, in all of its terms."""
    return any(
        all(term.holds(texts) for term in terms) and any(not term.negated for term in terms) for terms in alternatives
    )
