"""The query syntax of web search engines: words, ``"phrases"``, ``or``, ``-without``.

A text is parsed here, once for all databases, into alternatives of wanted and unwanted phrases; how a database is
asked for them is decided by its dialect module.  The meaning is that of PostgreSQL's ``websearch_to_tsquery()``
(manual, section 12.3.2), with two differences: words are cut at all punctuation, as the indexed texts are, and an
alternative that wants nothing finds nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sqla_vector.exc import InvalidText

__all__ = ["ENGLISH_STOP_WORDS", "MAX_QUERY_CHARACTERS", "MAX_QUERY_WORDS", "Alternative", "WebQuery", "parse", "words"]

MAX_QUERY_CHARACTERS: Final = 10_000
"""What a query has beyond these is not looked at."""
MAX_QUERY_WORDS: Final = 64
"""Further words of a query are left out."""
MAX_WORD_CHARACTERS: Final = 500
"""A longer word is in no index: PostgreSQL indexes up to 2,046 bytes."""

Phrase = tuple[str, ...]

_STOP_WORDS: Final = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves what which who whom this that these those am is are was were be
    been being have has had having do does did doing a an the and but if or because as until while of at by for with
    about against between into through during before after above below to from up down in out on off over under
    again further then once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don should now
"""

ENGLISH_STOP_WORDS: Final = frozenset(_STOP_WORDS.split())
"""The words that PostgreSQL's ``english`` configuration leaves out (``english.stop``)."""

_OPERATOR: Final = re.compile(r"or(?![\w-])", re.IGNORECASE)
_CHUNK: Final = re.compile(r'[^\s"!&|()]+')


@dataclass(frozen=True, slots=True)
class Alternative:
    """What a text must have, and must not have."""

    wanted: tuple[Phrase, ...]
    unwanted: tuple[Phrase, ...] = ()


@dataclass(frozen=True, slots=True)
class WebQuery:
    """A parsed query: a text is found if one of the alternatives holds for it."""

    alternatives: tuple[Alternative, ...]

    @property
    def wanted(self) -> tuple[Phrase, ...]:
        """All phrases that are wanted in some alternative, each once."""
        return tuple(dict.fromkeys(phrase for one in self.alternatives for phrase in one.wanted))

    def without(self, stop_words: Collection[str]) -> WebQuery:
        """Return the query without words that an index leaves out, at the ends of phrases."""
        return WebQuery(
            tuple(
                Alternative(wanted, tuple(_stripped(one.unwanted, stop_words)))
                for one in self.alternatives
                if (wanted := tuple(_stripped(one.wanted, stop_words)))
            )
        )


def _stripped(phrases: tuple[Phrase, ...], stop_words: Collection[str]) -> list[Phrase]:
    found = []
    for phrase in phrases:
        kept = [number for number, word in enumerate(phrase) if word.lower() not in stop_words]
        if kept:
            found.append(phrase[kept[0] : kept[-1] + 1])
    return found


@lru_cache(maxsize=4096)
def _is_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters, digits and combining marks, as they are written."""
    return "".join(character if _is_of_word(character) else " " for character in text).split()


def parse(text: str) -> WebQuery:
    """Parse a query; no text is a syntax error.

    Args:
        text: what somebody typed.

    Raises:
        InvalidText: it is no string, or has half of a surrogate pair, which no database stores.
    """
    return _Parser(check_query(text)[:MAX_QUERY_CHARACTERS]).parse()


def check_query(text: object) -> str:
    """Return a query if it is Unicode text, else raise :class:`InvalidText`."""
    if not isinstance(text, str):
        raise InvalidText(f"a search query is a string, got {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidText(
                f"the search query has half of a surrogate pair at position {error.start}; decode it properly first"
            ) from None
    return text


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._left = MAX_QUERY_WORDS
        self._alternatives: list[Alternative] = []
        self._wanted: list[Phrase] = []
        self._unwanted: list[Phrase] = []

    def parse(self) -> WebQuery:
        text, negated, after_operand = self._text, False, False
        # The last word's end: an "or" beyond it joins nothing, and is a word.
        last = max((n for n, character in enumerate(text) if _is_of_word(character)), default=-1)
        while self._position <= last and self._left:
            character = text[self._position]
            if character == "-":
                negated = not negated
                self._position += 1
            elif character == '"':
                end = text.find('"', self._position + 1)
                end = len(text) if end < 0 else end
                after_operand |= self._add(text[self._position + 1 : end], negated)
                negated = False
                self._position = end + 1
            elif after_operand and not negated and (end := self._operator_end(last)):
                self._end_alternative()
                after_operand = False
                self._position = end
            elif _is_of_word(character):
                chunk = _CHUNK.match(text, self._position)
                assert chunk is not None
                after_operand |= self._add(chunk.group(), negated)
                negated = False
                self._position = chunk.end()
            else:
                self._position += 1
        self._end_alternative()
        return WebQuery(tuple(self._alternatives))

    def _operator_end(self, last: int) -> int:
        """Return where an "or" ends that joins what stands before it and behind it, 0 if there is none."""
        found = _OPERATOR.match(self._text, self._position)
        return found.end() if found is not None and found.end() <= last else 0

    def _add(self, text: str, negated: bool) -> bool:
        """Add the words of a text as a phrase; return whether there are any."""
        phrase = tuple(words(text)[: self._left])
        self._left -= len(phrase)
        if phrase:
            (self._unwanted if negated else self._wanted).append(phrase)
        return bool(phrase)

    def _end_alternative(self) -> None:
        possible = not any(_is_too_long(phrase) for phrase in self._wanted)
        if self._wanted and possible:
            unwanted = [phrase for phrase in self._unwanted if not _is_too_long(phrase)]
            self._alternatives.append(Alternative(_once(self._wanted), _once(unwanted)))
        self._wanted, self._unwanted = [], []


def _is_too_long(phrase: Phrase) -> bool:
    return any(len(word) > MAX_WORD_CHARACTERS for word in phrase)


def _once(phrases: list[Phrase]) -> tuple[Phrase, ...]:
    return tuple(dict.fromkeys(phrases))
