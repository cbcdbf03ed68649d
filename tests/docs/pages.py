"""The Python in the documentation, as a list of blocks.

A block is what stands between ```` ```python ```` and ```` ``` ````. The line before may be a marker::

    <!-- no-run -->       only to be read
    <!-- postgresql -->   runs where the test server is
    <!-- elasticsearch -->   runs where the test node is
    <!-- file: name -->   a file of a project, which ``tests/docs/guide.py`` makes; ``edit:`` and others likewise

A ```` ```text ```` block that follows a Python block is what it prints. All blocks of a page run in order in one
namespace, in an empty directory, with the PostgreSQL URLs of the text replaced by the test database's, and
Elasticsearch's by that of the test node.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, close_all_sessions, scoped_session, sessionmaker

from sqla_vector.tracking import untrack

TRACKED = (Session, AsyncSession, sessionmaker, async_sessionmaker, scoped_session, async_scoped_session)
ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NODE_URL = "http://localhost:9200"
SERVER_URL = re.compile(r"(postgresql\+\w+)://user:password@localhost/app")


@dataclass(frozen=True)
class Block:
    """A block of Python, and what it prints if the page says so."""

    marker: str
    line: int
    code: str
    printed: str | None


_BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>no-run|postgresql|elasticsearch|[a-z ]+: \S+) -->\n)?```python\n(?P<code>.*?)^```\n"
    r"(?:\n?```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path) -> list[Block]:
    """Return the Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            match["marker"] or "",
            text.count("\n", 0, match.start("code")) + 1,
            match["code"],
            match["printed"],
        )
        for match in _BLOCK.finditer(text)
    ]


def run(page: Path, *, server: URL | None, node: str | None = None) -> dict[str, Any]:
    """Run the blocks of a page, those that need a server only if there is one; return the namespace."""
    # A module, because SQLAlchemy resolves the annotations of a class in the module that defines it.
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    namespace = vars(module)
    try:
        for block in blocks(page):
            if block.marker == "" or {"postgresql": server, "elasticsearch": node}.get(block.marker) is not None:
                _run_block(page, block, namespace, server, node)
    finally:
        _close(namespace)
        del sys.modules[module.__name__]
    return namespace


def _run_block(page: Path, block: Block, namespace: dict[str, Any], server: URL | None, node: str | None) -> None:
    def replace(match: re.Match[str]) -> str:
        assert server is not None, f"{page.name}, line {block.line}: mark the block <!-- postgresql -->"
        return server.set(drivername=match[1]).render_as_string(hide_password=False)

    # Line numbers of a traceback are those of the page.
    code = "\n" * (block.line - 1) + SERVER_URL.sub(replace, block.code).replace(NODE_URL, node or NODE_URL)
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(code, str(page), "exec", dont_inherit=True), namespace)  # noqa: S102 - our own documentation
    sys.stdout.write(printed.getvalue())
    if block.printed is not None:
        assert _lines(printed.getvalue()) == _lines(block.printed), f"{page.name}, line {block.line}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _close(namespace: dict[str, Any]) -> None:
    close_all_sessions()
    for value in namespace.values():
        # Programs track their sessions for as long as they live; a page's would be found by other tests.
        if isinstance(value, TRACKED) or (isinstance(value, type) and issubclass(value, Session)):
            untrack(value)
    for engine in _engines(namespace):
        engine.dispose()
    gc.collect()


def _engines(namespace: dict[str, Any]) -> Iterator[Engine]:
    for value in namespace.values():
        if isinstance(value, Engine):
            yield value
        elif isinstance(value, AsyncEngine):
            yield value.sync_engine
        elif isinstance(value, Session) and isinstance(value.bind, Engine):
            yield value.bind
