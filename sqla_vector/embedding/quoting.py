"""Messages that quote nothing of the texts that were embedded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["without_texts"]

_RUN: Final = 12
"""Letters and digits in a row that a message may not share with a text."""

_STEP: Final = _RUN // 2
_SHORTEST: Final = 3
_LONGEST: Final = 1000
_HIDDEN: Final = "[…]"

_ESCAPE: Final = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|.)", re.DOTALL)
_OTHER: Final = re.compile(r"[\W_]+")


def without_texts(message: str, texts: Sequence[str]) -> str:
    """Return a message with what it quotes of texts left out, and cut to 1,000 characters.

    Servers repeat what they were sent, and functions name what they failed at.  Messages go to logs and into the
    outbox, where no text belongs.  Only letters and digits are compared, so that it does not matter how often a
    quotation was escaped on its way.

    Args:
        message: what somebody says of the texts.
        texts: that were sent; 12 letters in a row of one are taken for a quotation, and of a shorter text all.
    """
    shown = message[:_LONGEST]
    letters, places = _letters(shown)
    hidden: set[int] = set()
    for text in set(texts):
        plain = _plain(text)
        if len(plain) >= _RUN:
            hidden |= _shared(letters, plain)
        elif len(plain) >= _SHORTEST:
            hidden |= _words(letters, places, plain)
    return _left_out(shown, [places[number] for number in sorted(hidden)])


def _decoded(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else ""


def _plain(text: str) -> str:
    """Return the letters and digits of a text."""
    return _OTHER.sub("", _ESCAPE.sub(_decoded, text))


def _letters(message: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the letters and digits of a message, and where each of them begins and ends."""
    letters: list[str] = []
    places: list[tuple[int, int]] = []
    for match in re.finditer(rf"{_ESCAPE.pattern}|(.)", message, re.DOTALL):
        letter = match[3] or _decoded(match)
        if letter and not _OTHER.match(letter):
            letters.append(letter)
            places.append(match.span())
    return "".join(letters), places


def _shared(letters: str, plain: str) -> set[int]:
    """Return the numbers of the letters that stand in runs that a text has too."""
    found: set[int] = set()
    for start in range(0, len(letters) - _STEP + 1, _STEP):
        # A shared run contains one of these steps: so few are looked for in a text that may be long.
        if letters[start : start + _STEP] in plain:
            for first in range(max(0, start - _STEP), start + 1):
                run = letters[first : first + _RUN]
                if len(run) == _RUN and run in plain:
                    found.update(range(first, first + _RUN))
    return found


def _words(letters: str, places: list[tuple[int, int]], plain: str) -> set[int]:
    """Return the numbers of the letters of a short text where it stands by itself."""
    found: set[int] = set()
    at = letters.find(plain)
    while at >= 0:
        last = at + len(plain) - 1
        is_begin = at == 0 or places[at - 1][1] < places[at][0]
        is_end = last + 1 == len(letters) or places[last][1] < places[last + 1][0]
        if is_begin and is_end:
            found.update(range(at, last + 1))
        at = letters.find(plain, at + 1)
    return found


def _left_out(message: str, places: list[tuple[int, int]]) -> str:
    parts: list[str] = []
    at = 0
    for start, end in places:
        between = message[at:start]
        if not parts or _plain(between):
            parts += [between, _HIDDEN]
        at = end
    return "".join((*parts, message[at:]))
