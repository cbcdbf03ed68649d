"""Random queries in web syntax, with what they mean; and texts to search in."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from tests.support.text_reference import Term

WORDS = ("red", "fox", "Hen", "élan", "ÉTÉ", "x1", "42", "owl", "שלום", "привет")


@st.composite
def _queries(draw: st.DrawFn, longest: int = 3) -> tuple[str, list[list[Term]]]:
    phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=longest).map(tuple)
    alternatives, texts = [], []
    for _ in range(draw(st.integers(1, 3))):
        terms, parts = [], []
        for _ in range(draw(st.integers(1, 3))):
            # Something is wanted by an alternative of single words.
            term = Term(draw(phrases), draw(st.booleans()) and (longest > 1 or bool(terms)))
            glue, quotes = draw(
                st.sampled_from([(" ", True), (" ... ", True), ("-", False), ("'", False), ("_", False)])
            )
            joined = glue.join(term.words)
            terms.append(term)
            parts.append(("-" if term.negated else "") + (f'"{joined}"' if quotes else joined))
        alternatives.append(terms)
        texts.append(draw(st.sampled_from([" ", "  ", "\n", " , ", " & "])).join(parts))
    return draw(st.sampled_from([" or ", " OR ", "\tOr "])).join(texts), alternatives


QUERIES = _queries()
"""A query as it is typed, and its alternatives."""

QUERIES_OF_WORDS = _queries(longest=1)
"""Likewise without phrases, and with alternatives that all want something."""


def corpus(size: int, seed: int = 11) -> dict[int, tuple[str | None, str | None]]:
    """Return titles and bodies by key: few words, in changing case, with punctuation that joins nothing."""
    chance = random.Random(seed)

    def text(most: int) -> str | None:
        words = chance.choices(WORDS, k=chance.randint(0, most))
        written = "".join(
            chance.choice((word, word.upper(), word.lower())) + chance.choice((" ", ", ", "-", "/", ".\n", "’", " — "))
            for word in words
        )
        return chance.choice((written, written, written, None))

    return {key: (text(3), text(7)) for key in range(1, size + 1)}
