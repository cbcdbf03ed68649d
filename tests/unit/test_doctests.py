"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import sqla_vector


def test_every_example_in_a_docstring_gives_what_it_shows() -> None:
    attempted = 0
    for found in pkgutil.walk_packages(sqla_vector.__path__, "sqla_vector."):
        result = doctest.testmod(importlib.import_module(found.name))
        assert result.failed == 0, found.name
        attempted += result.attempted
    assert attempted > 0
