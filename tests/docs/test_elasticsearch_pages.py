"""What the pages on Elasticsearch say of calls, privileges and commands is what the package does."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from tests.docs.pages import PAGES, ROOT

PAGE = (ROOT / "docs" / "elasticsearch.md").read_text(encoding="utf-8")
ASKED = {"ask", "_ask", "_insist", "Ask"}
"""Functions that are given the name of a call."""
CLIENTS = {"client", "blocking"}
NO_REQUESTS = {"options", "close", "transport.node_pool.all"}


def calls() -> set[str]:
    """Return the names of all calls of a client in the package."""
    found = set()
    for room in ("elasticsearch", "cli/es"):
        for file in sorted((ROOT / "sqla_vector" / room).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and (name := _called(node)):
                    found.add(name)
    return found - NO_REQUESTS


def _called(node: ast.Call) -> str | None:
    *path, last = _path(node.func)
    if last in ASKED and node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value:
        return str(node.args[0].value)
    for number, name in enumerate(path):
        if name in CLIENTS or name == "_client":
            return ".".join([*path[number + 1 :], last])
    return None


def _path(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*_path(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def test_the_table_of_privileges_has_every_call_and_no_other():
    table = PAGE.partition("| call | privilege | for |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1] if row else "")}
    assert calls() == named


def documented() -> Iterator[list[str]]:
    """Yield the commands of all pages."""
    for page in PAGES:
        for line in re.findall(r"^sqla-vector (es .*|dead .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            yield shlex.split(line.partition("  #")[0].partition(" < ")[0])


@pytest.mark.parametrize("arguments", list(documented()), ids=" ".join)
def test_a_command_that_is_shown_can_be_given(arguments: list[str]):
    from sqla_vector.cli.program import program

    command: Any = typer.main.get_command(program)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context("sqla-vector", arguments)


def test_each_command_of_es_is_on_the_page_of_the_command_line():
    from sqla_vector.cli.program import program

    main: Any = typer.main.get_command(program)
    group = main.commands["es"]
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in group.commands if f"| `es {name}` |" not in page] == []
    options = {option for one in group.commands.values() for param in one.params for option in param.opts}
    told_by_help = {"--field", "--limit", "--help"}
    assert [one for one in sorted(options - told_by_help) if one.startswith("--") and one not in page] == []
