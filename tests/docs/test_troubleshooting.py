"""The page on troubleshooting has every message of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqla_vector import exc
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def raised() -> Iterator[tuple[str, str]]:
    """Yield each message's longest constant part, and where it is in the source."""
    for file in sorted((ROOT / "sqla_vector").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in exc.__all__:
                part = max(_constants(node.args[0]), key=len, default="") if node.args else ""
                if part:
                    yield part.strip(" :,;()'\""), f"{file.relative_to(Path(ROOT))}:{node.lineno}"


def _constants(message: ast.expr) -> list[str]:
    if isinstance(message, ast.Constant):
        return [str(message.value)]
    if isinstance(message, ast.JoinedStr):
        return [str(part.value) for part in message.values if isinstance(part, ast.Constant)]
    return []


@pytest.mark.parametrize(("part", "where"), [pytest.param(*found, id=found[1]) for found in raised()])
def test_a_message_is_explained(part: str, where: str):
    assert part[:60] in PAGE, f"docs/troubleshooting.md lacks the message of {where}"


@pytest.mark.parametrize("name", exc.__all__)
def test_an_error_has_a_section(name: str):
    assert name == "VectorError" or f"\n## {name}\n" in PAGE
