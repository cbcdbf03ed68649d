"""From a text to its chunks: where each begins and ends.

Where a chunk ends depends on the text around the end, and not on how far it is from the beginning of the text: of
all places where it may end, it ends behind the sentence with the largest hash, if possible one that ends a paragraph.
So whoever inserts a paragraph changes the chunks beside it, and the others stay what they were, with their vectors.

Sources: boundaries by hashes of what is near them, Muthitacharoen et al., *A low-bandwidth network file system*,
SOSP 2001; the largest of a window, Schleimer et al., *Winnowing*, SIGMOD 2003.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final
from zlib import crc32

from sqla_vector.exc import InvalidOption, InvalidText
from sqla_vector.schema import check_whole_number

__all__ = ["Chunk", "Span", "Splitter", "Tokenizer", "by_sentences", "by_tokens", "chunks_of", "sentences", "words"]

Span = tuple[int, int]
"""Where a part of a text begins, and where it ends, in characters: ``text[start:end]``."""

Tokenizer = Callable[[str], Iterable[Any]]
"""Returns the tokens of a text in order, as spans or as the parts of the text themselves."""

Splitter = Callable[[str], Iterable[Any]]
"""Returns the chunks of a text, as spans or as the parts of the text themselves; they may overlap."""

_WORD: Final = re.compile(r"\w{1,50}|[^\w\s]")
_SENTENCE: Final = re.compile(
    r"""
    [。！？]["'”’」』)\]]*                     # these need no space after them
    | (?<![.!?…])[.!?…]+ ["'”’»)\]]* (?=\s|\Z)
    | \n
    """,
    re.VERBOSE,
)
_BLANK_LINE: Final = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a text."""

    text: str
    start: int
    """The number of its first character in the text."""
    end: int
    """The number of the character after its last one."""


def words(text: str) -> list[Span]:
    """Return words and signs, about one for each token of a language model; 50 characters of a word at most."""
    return [match.span() for match in _WORD.finditer(text)]


def sentences(text: str) -> list[Span]:
    """Return the sentences of a text; a line ends one, too.  There is no dictionary of abbreviations behind it."""
    found, start = [], 0
    for match in _SENTENCE.finditer(text):
        found.append((start, match.end()))
        start = match.end()
    found.append((start, len(text)))
    return [span for span in (_stripped(text, *span) for span in found) if span[0] < span[1]]


def by_tokens(size: int = 200, overlap: int = 20, *, tokenizer: Tokenizer = words) -> Splitter:
    """Return a splitter into chunks of a number of tokens at most, which end where sentences end.

    ::

        by_tokens(256, 32, tokenizer=lambda text: hf(text, return_offsets_mapping=True)["offset_mapping"])

    Args:
        size: the tokens of a chunk at most.
        overlap: how many of them repeat the end of the text before.
        tokenizer: by default :func:`words`.  A sentence that is longer than a chunk is cut between tokens.

    Raises:
        InvalidOption: an option out of its range.
    """
    check_whole_number(size, "size", 1, 1_000_000)
    _check_overlap(overlap, size)
    if not callable(tokenizer):
        raise InvalidOption(f"tokenizer= is a function from a text to its tokens, got {tokenizer!r}")
    return _ByTokens(size, overlap, tokenizer)


def by_sentences(size: int = 5, overlap: int = 1) -> Splitter:
    """Return a splitter into chunks of a number of sentences at most.

    Args:
        size: the sentences of a chunk at most.
        overlap: how many of them repeat the end of the text before.

    Raises:
        InvalidOption: an option out of its range.
    """
    check_whole_number(size, "size", 1, 1_000_000)
    _check_overlap(overlap, size)
    return _BySentences(size, overlap)


def chunks_of(text: str, splitter: Splitter) -> list[Chunk]:
    """Return the chunks of a text; parts of white space are left out.

    Raises:
        InvalidText: the splitter returned what are no parts of the text.
    """
    spans = located(text, splitter(text), "the splitter", in_order=False)
    return [Chunk(text[start:end], start, end) for start, end in spans if not text[start:end].isspace()]


def located(text: str, found: object, who: str, *, in_order: bool) -> list[Span]:
    """Return spans of what a function said of a text, where that was parts of the text.

    Args:
        text: that was given to the function.
        found: what it returned.
        who: the function, in messages.
        in_order: whether spans may not overlap.

    Raises:
        InvalidText: these are no parts of the text.
    """
    if isinstance(found, (str, bytes)) or not isinstance(found, Iterable):
        raise InvalidText(f"{who} returns spans (start, end) or parts of the text, got {type(found).__name__}")
    spans: list[Span] = []
    at = 0
    for part in found:
        start, end = _span(text, part, at, who)
        if start == end:
            continue
        if in_order and start < at:
            raise InvalidText(f"{who} returned a part at {start:,} after one that ends at {at:,}")
        # Chunks overlap: the next one begins after the beginning of this one, not after its end.
        at = end if in_order else max(at, start)
        spans.append((start, end))
    return spans


def _span(text: str, part: object, at: int, who: str) -> Span:
    if isinstance(part, str):
        start = text.find(part, at)
        if start < 0:
            raise InvalidText(f"{who} returned a part of {len(part):,} characters that is not in the text after {at:,}")
        return start, start + len(part)
    if isinstance(part, Sequence) and len(part) == 2:
        start, end = part
        if type(start) is int and type(end) is int and 0 <= start <= end <= len(text):
            return start, end
    raise InvalidText(f"{who} returned what is no part of a text of {len(text):,} characters: {_shown(part)}")


def _shown(part: object) -> str:
    # Numbers, and of anything else the type: it may quote the text.
    numbers = isinstance(part, (tuple, list)) and all(isinstance(one, (int, float)) for one in part)
    return repr(part)[:100] if numbers else type(part).__name__


def _check_overlap(overlap: object, size: int) -> None:
    check_whole_number(overlap, "overlap", 0, 1_000_000)
    if overlap >= size:  # type: ignore[operator]
        raise InvalidOption(f"overlap ({overlap}) must be less than size ({size}): a chunk has to go on, too")


@dataclass(frozen=True)
class _Unit:
    """What a chunk has as a whole or not at all."""

    first: int
    """The number of its first token."""
    end: int
    """The number of the token after its last one."""
    rank: tuple[bool, int]
    """How good an end of a chunk it is."""


@dataclass(frozen=True)
class _BySentences:
    size: int
    overlap: int

    def __call__(self, text: str) -> list[Span]:
        spans = sentences(text)
        ends = _ends_of_paragraphs(text, spans)
        units = [_Unit(number, number + 1, (number in ends, _hash(text, span))) for number, span in enumerate(spans)]
        return list(_packed(spans, units, self.size, self.overlap))


@dataclass(frozen=True)
class _ByTokens:
    size: int
    overlap: int
    tokenizer: Tokenizer

    def __call__(self, text: str) -> list[Span]:
        tokens = located(text, self.tokenizer(text), "the tokenizer", in_order=True)
        return list(_packed(tokens, list(self._units(text, tokens)), self.size, self.overlap))

    def _units(self, text: str, tokens: list[Span]) -> Iterator[_Unit]:
        starts = [start for start, _ in tokens]
        spans = sentences(text)
        ends = _ends_of_paragraphs(text, spans)
        first = 0
        for number, (_, end_of_sentence) in enumerate(spans):
            end = bisect_left(starts, end_of_sentence, first)
            if end - first > self.size - self.overlap:
                yield from (_Unit(at, at + 1, (False, _hash(text, tokens[at]))) for at in range(first, end))
            elif end > first:
                sentence = tokens[first][0], tokens[end - 1][1]
                yield _Unit(first, end, (number in ends, _hash(text, sentence)))
            first = end
        # What the sentences do not have: tokens of white space at the end.
        yield from (_Unit(at, at + 1, (False, 0)) for at in range(first, len(tokens)))


def _packed(tokens: list[Span], units: list[_Unit], size: int, overlap: int) -> Iterator[Span]:
    """Yield chunks of whole units, of as many tokens as fit, with those before that they repeat."""
    at, start = 0, -1
    while at < len(units):
        room = size - overlap if at else size
        first = units[at].first
        end = bisect_right(units, first + room, at, key=attrgetter("end"))
        if end == len(units):
            last = end - 1
        else:
            # From a third on: of units of one length there are always two places or more to choose from.
            long = (number for number in range(at, end) if 3 * (units[number].end - first) >= room)
            last = max(long, key=lambda number: (units[number].rank, number), default=end - 1)
        # Not all of the chunk before, should that be shorter than what is to be repeated.
        start = max(first - overlap, start + 1)
        yield tokens[start][0], tokens[units[last].end - 1][1]
        at = last + 1


def _hash(text: str, span: Span) -> int:
    return crc32(text[slice(*span)].encode(errors="replace"))


def _ends_of_paragraphs(text: str, spans: list[Span]) -> set[int]:
    """Return the numbers of the sentences that a blank line follows."""
    starts = [start for start, _ in spans]
    return {bisect_left(starts, match.end()) - 1 for match in _BLANK_LINE.finditer(text)}


def _stripped(text: str, start: int, end: int) -> Span:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - (len(part) - len(part.rstrip()))
