"""What the pages on Elasticsearch say of calls, privileges and commands is what the package does."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
import typer

from sqla_vector.elasticsearch.convert import mapping_of
from sqla_vector.elasticsearch.sizing import bytes_per_vector
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


def rows_of(header: str) -> list[list[str]]:
    """Return the cells of a table, from its first line of contents on."""
    _, found, rest = PAGE.partition(f"\n| {header} |\n")
    assert found, header
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rest.partition("\n\n")[0].splitlines()[1:]]


def test_the_fields_of_columns_are_those_that_follow_from_their_types():
    compared = set()
    for columns, field, _ in rows_of("column | field | documents have"):
        for name in re.findall(r"`(\w+)`", columns):
            if name.endswith("Vector"):
                continue
            type_ = getattr(sqlalchemy, name)
            made = type_(sqlalchemy.Integer) if name == "ARRAY" else type_("a", "b") if name == "Enum" else type_()
            mapping = mapping_of(made)
            compared.add(name)
            if name == "ARRAY":
                assert mapping == mapping_of(sqlalchemy.Integer())
            elif mapping is None:
                assert field == "none"
            else:
                assert field.startswith(f"`{mapping['type']}`"), name
                assert ("`keyword`" in field) == (mapping["type"] == "keyword" or "fields" in mapping), name
                assert ("not indexed" in field) == (mapping.get("enabled") is False), name
    assert {"String", "Text", "Numeric", "DateTime", "JSON", "Uuid", "LargeBinary", "Interval"} <= compared


def test_the_memory_of_a_vector_is_what_is_calculated():
    shown = {}
    for index, _, memory in rows_of("`index=` | what is searched | memory for a vector of 384 dimensions"):
        found = re.match(r"`(\w+)`", index)
        assert found is not None
        shown[found[1]] = int(re.sub(r"\D", "", memory))
    assert shown == {index: bytes_per_vector(384, index)[1] for index in shown}
    assert "int8_hnsw" in shown
