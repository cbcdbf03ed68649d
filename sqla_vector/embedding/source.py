"""From a row to the text that is embedded."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqla_vector.exc import InvalidOption, InvalidText

__all__ = ["SEPARATOR", "SourceText", "clean"]

SEPARATOR: Final = "\n\n"
"""What stands between the parts of a text made of several attributes."""

_CONVERSIONS: Final[dict[str | None, Callable[[Any], Any]]] = {None: lambda value: value, "s": str, "r": repr}


@dataclass(frozen=True)
class SourceText:
    """How the text of a row is made; called with an entity.

    A part that is None or white space is left out.  A row without any part has the text None, and its vector is
    NULL.
    """

    paths: tuple[str, ...]
    """The attributes it depends on; ``author.name`` is an attribute of a related row."""
    template: str | None = None
    """The text with the attributes' names in braces; without one the parts are joined by a blank line."""
    function: Callable[[Any], str | None] | None = None
    """Makes the text from the entity instead."""
    redact: Callable[[str], str | None] | None = None
    """Is given the text and returns what may be known of it."""

    def __call__(self, entity: object) -> str | None:
        """Return what may be known of the text of an entity, None if it has none.

        Raises:
            InvalidText: the text is no string, or none that can be encoded.
        """
        if self.function is None:
            return self.of_values([_value(entity, path) for path in self.paths])
        return self._redacted(clean(self.function(entity)))

    def of_values(self, values: Sequence[Any]) -> str | None:
        """Return the same for the values of the attributes, in the order of ``paths``.

        Raises:
            InvalidText: the text is none that can be encoded.
        """
        if self.template is None:
            # The usual case, as it is below.
            seen = []
            for value in values:
                if type(value) is not str:
                    break
                if value and not value.isspace():
                    seen.append(value)
            else:
                return self._redacted(clean(SEPARATOR.join(seen))) if seen else None
        found = [_part(value, path) for value, path in zip(values, self.paths, strict=True)]
        written = [part if type(part) is str else str(part) for part in found if part is not None]
        if not written:
            return None
        if self.template is None:
            text = SEPARATOR.join(written)
        else:
            text = _filled(self.template, dict(zip(self.paths, found, strict=True)))
        return self._redacted(clean(text))

    def _redacted(self, text: str | None) -> str | None:
        return text if text is None or self.redact is None else clean(self.redact(text))

    @classmethod
    def of(
        cls,
        source: str | Sequence[str] | Callable[[Any], str | None],
        depends_on: Sequence[str] = (),
        template: str | None = None,
        redact: Callable[[str], str | None] | None = None,
    ) -> SourceText:
        """Return the source for what a user declares.

        Raises:
            InvalidOption: the declaration contradicts itself.
        """
        if redact is not None and not callable(redact):
            raise InvalidOption(f"redact= is a function from text to text, got {redact!r}")
        if callable(source):
            if not depends_on:
                raise InvalidOption(
                    "source is a function, so nothing tells which attributes it reads; add depends_on=, "
                    'for example depends_on=("title", "body")'
                )
            if template is not None:
                raise InvalidOption("template= fills in attributes; a function makes the whole text by itself")
            return cls(_paths(depends_on, "depends_on"), function=source, redact=redact)
        if depends_on:
            raise InvalidOption("depends_on= belongs to a source that is a function; attributes name themselves")
        paths = _paths(source, "source")
        if template is not None:
            _check_template(template, paths)
        return cls(paths, template, redact=redact)


def _paths(given: object, what: str) -> tuple[str, ...]:
    paths = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not paths:
        raise InvalidOption(f"{what} names no attribute")
    for path in paths:
        if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
            raise InvalidOption(f'{what} takes names of attributes, such as "title" or "author.name", got {path!r}')
    if len(set(paths)) != len(paths):
        raise InvalidOption(f"{what} names an attribute twice: {', '.join(paths)}")
    return paths


def _check_template(template: object, paths: tuple[str, ...]) -> None:
    if not isinstance(template, str):
        raise InvalidOption(f"template= is a text with attributes in braces, got {template!r}")
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidOption(f"template {template!r} cannot be read: {error}") from error
    names = {name for _, name, _, _ in parsed if name is not None}
    for _, name, spec, conversion in parsed:
        if name is not None and name not in paths:
            raise InvalidOption(f"template has {{{name}}}, which source does not name; it names {', '.join(paths)}")
        if conversion not in _CONVERSIONS or "{" in (spec or ""):
            raise InvalidOption(f"template formats {name} in a way that is not known here; write {{{name}}}")
    unused = sorted(set(paths) - names)
    if unused:
        raise InvalidOption(f"source names {unused[0]}, which the template does not use")


def _filled(template: str, parts: dict[str, Any]) -> str:
    # Not str.format(): it would take {author.name} for an attribute of ``author``, and fail on None with a format.
    written = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        written.append(literal)
        if name is not None and parts[name] is not None:
            try:
                written.append(format(_CONVERSIONS[conversion](parts[name]), spec or ""))
            except (TypeError, ValueError) as error:
                raise InvalidText(f"{name} cannot be written as the template {template!r} says: {error}") from None
    return "".join(written)


def _value(entity: object, path: str) -> Any:
    """Return the value at a path, None if there is none."""
    if "." not in path:
        return getattr(entity, path)
    value: Any = entity
    for name in path.split("."):
        if value is None:
            return None
        value = getattr(value, name)
    return value


def _part(value: Any, path: str) -> Any:
    """Return a value, None if there is nothing to be seen in it."""
    if type(value) is str:
        return value if value and not value.isspace() else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise InvalidText(f"{path} holds bytes, which are no text; give a function as source that decodes them")
    return None if value is None or not str(value).strip() else value


def clean(text: object) -> str | None:
    """Return a text that can be hashed and sent; None for one without a visible character.

    Raises:
        InvalidText: it is no string, or has a lone surrogate.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidText(f"a text to embed must be a string, got {type(text).__name__}")
    if text.isascii():
        return text if text and not text.isspace() else None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(f"a text to embed has a lone surrogate at position {error.start:,}") from None
    return text if text.strip() else None
