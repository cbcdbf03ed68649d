"""Show the roles in docstrings (``:func:`distance```) as code; used by mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Roles(Extension):
    """Replaces the roles of a docstring before it is parsed."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":[a-z]+:`~?(?:sqla_vector\.)?([^`]+)`", r"`\1`", obj.docstring.value)
