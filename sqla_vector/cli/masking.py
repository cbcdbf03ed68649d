"""Secrets in what is printed: passwords of URLs and connection strings become ``***``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TextIO
from urllib.parse import quote, quote_plus, unquote, unquote_plus

__all__ = ["Masked", "Masking"]

MASK: Final = "***"

# Up to the last @ before white space: a password that was not encoded may have one in it.
_URL: Final = re.compile(r"(?<=://)([^\s:/@]*):\S*@")
_SETTING: Final = re.compile(
    r"\b(\w*(?:password|passwd|passphrase|secret|token|api[_-]?key)|pwd|authorization)(['\"]?\s*[=:]\s*)"
    r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?:bearer\s+)?[^\s,;&)\]}'\"]+)",
    re.IGNORECASE,
)
_SECRET_NAME: Final = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|KEY)$", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"://[^\s:/@]*:([^@]*)@")
_SHORTEST: Final = 4
"""Shorter secrets are masked in URLs and settings only: everywhere else they would mask half of the words."""


class Masking:
    """Knows what must not be seen.

    Args:
        environment: variables whose names end with ``PASSWORD``, ``KEY`` and the like, or that have URLs with
            passwords in them.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        for name, value in (os.environ if environment is None else environment).items():
            self.add(_PASSWORD.findall(value))
            if _SECRET_NAME.search(name):
                self.add([value])

    def add(self, secrets: Iterable[str]) -> None:
        """Learn secrets, which are masked wherever they stand as a word."""
        for secret in secrets:
            self._secrets |= {
                form
                for form in (secret, unquote(secret), unquote_plus(secret), quote(secret, safe=""), quote_plus(secret))
                if len(form) >= _SHORTEST
            }
        longest_first = sorted(self._secrets, key=lambda secret: (-len(secret), secret))
        written = "|".join(re.escape(secret) for secret in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{written})(?!\w)") if written else None

    def __call__(self, text: str) -> str:
        """Return a text without secrets."""
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        text = _URL.sub(rf"\1:{MASK}@", text)
        return _SETTING.sub(rf"\1\2{MASK}", text)

    def masked(self, value: Any) -> Any:
        """Return plain data without secrets in its strings."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Mapping):
            return {key: self.masked(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.masked(item) for item in value]
        return value


class Masked:
    """A stream that masks what is written to it, and is otherwise the stream itself."""

    def __init__(self, stream: TextIO, masking: Masking) -> None:
        self._stream = stream
        self._masking = masking

    def write(self, text: str) -> int:
        """Write a text."""
        self._stream.write(self._masking(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
