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


@dataclass(frozen=True)
class SourceText:
    """How the text of a row is made; called with an entity.

    A row without text, where every part is None or white space, has the text None, and its vector is NULL.
    """

    paths: tuple[str, ...]
    """The attributes it depends on; ``author.name`` is an attribute of a related row."""
    template: str | None = None
    """The text with the attributes' names in braces; without one the parts are joined by a blank line."""
    function: Callable[[Any], str | None] | None = None
    """Makes the text from the entity instead."""

    def __call__(self, entity: object) -> str | None:
        """Return the text of an entity, None if it has none.

        Raises:
            InvalidText: the text is no string, or none that can be encoded.
        """
        if self.function is not None:
            return clean(self.function(entity))
        parts = {path: _value(entity, path) for path in self.paths}
        if all(part is None or not str(part).strip() for part in parts.values()):
            return None
        if self.template is None:
            return clean(SEPARATOR.join(str(part) for part in parts.values() if part is not None))
        filled = {path.replace(".", "_"): "" if part is None else part for path, part in parts.items()}
        return clean(_in_fields(self.template).format_map(filled))

    @classmethod
    def of(
        cls,
        source: str | Sequence[str] | Callable[[Any], str | None],
        depends_on: Sequence[str] = (),
        template: str | None = None,
    ) -> SourceText:
        """Return the source for what a user declares.

        Raises:
            InvalidOption: the declaration contradicts itself.
        """
        if callable(source):
            if not depends_on:
                raise InvalidOption(
                    "source is a function, so nothing tells which attributes it reads; add depends_on=, "
                    'for example depends_on=("title", "body")'
                )
            if template is not None:
                raise InvalidOption("template= fills in attributes; a function makes the whole text by itself")
            return cls(_paths(depends_on, "depends_on"), function=source)
        if depends_on:
            raise InvalidOption("depends_on= belongs to a source that is a function; attributes name themselves")
        paths = _paths(source, "source")
        if template is not None:
            _check_template(template, paths)
        return cls(paths, template)


def _paths(given: str | Sequence[str], what: str) -> tuple[str, ...]:
    paths = (given,) if isinstance(given, str) else tuple(given)
    if not paths:
        raise InvalidOption(f"{what} names no attribute")
    for path in paths:
        if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
            raise InvalidOption(f'{what} takes names of attributes, such as "title" or "author.name", got {path!r}')
    if len(set(paths)) != len(paths):
        raise InvalidOption(f"{what} names an attribute twice: {', '.join(paths)}")
    return paths


def _check_template(template: str, paths: tuple[str, ...]) -> None:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InvalidOption(f"template {template!r} cannot be read: {error}") from error
    unknown = sorted(set(fields) - set(paths))
    if unknown:
        raise InvalidOption(f"template has {{{unknown[0]}}}, which source does not name; it names {', '.join(paths)}")
    unused = sorted(set(paths) - set(fields))
    if unused:
        raise InvalidOption(f"source names {unused[0]}, which the template does not use")


def _in_fields(template: str) -> str:
    """Return a template whose fields are plain names: ``{author.name}`` would be an attribute of ``author``."""
    written = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        written.append(literal.replace("{", "{{").replace("}", "}}"))
        if name is not None:
            suffix = f"!{conversion}" if conversion else ""
            written.append(f"{{{name.replace('.', '_')}{suffix}{f':{spec}' if spec else ''}}}")
    return "".join(written)


def _value(entity: object, path: str) -> Any:
    value: Any = entity
    for name in path.split("."):
        if value is None:
            return None
        value = getattr(value, name)
    return value


def clean(text: object) -> str | None:
    """Return a text that can be hashed, stored and sent; None for one without a visible character.

    Raises:
        InvalidText: it is no string, or has a lone surrogate.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidText(f"a text to embed must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(f"a text to embed has a lone surrogate at position {error.start:,}") from None
    return text if text.strip() else None
