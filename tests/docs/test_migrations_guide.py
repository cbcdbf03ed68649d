"""The guide to migrations, followed to the letter: each file is made, each command is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.docs.guide import Guide, edited, steps
from tests.docs.pages import ROOT
from tests.support import sqlite
from tests.support.backends import kinds

PAGE = ROOT / "docs" / "migrations.md"


def shown(url: URL, driver: str) -> str:
    return url.set(drivername=driver).render_as_string(hide_password=False)


@pytest.fixture(autouse=True)
def _sqlite_vec_is_there() -> None:
    if reason := sqlite.why_vec_unavailable():
        pytest.skip(reason)


@pytest.mark.parametrize("driver", ["pysqlite", "aiosqlite"])
def test_the_guide_can_be_followed_on_sqlite(driver: str, tmp_path: Path):
    url = URL.create("sqlite", database=str(tmp_path / "app.db"))
    is_async = driver == "aiosqlite"
    commands = Guide(
        PAGE, tmp_path, shown(url, "sqlite"), async_url=shown(url, f"sqlite+{driver}") if is_async else None
    ).follow()
    assert "alembic upgrade head" in commands


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_guide_can_be_followed_on_postgresql(driver: str, tmp_path: Path, postgresql_server: Any):
    (kind,) = kinds([driver])
    if reason := kind.why_unavailable():
        pytest.skip(reason)
    with postgresql_server.database() as first, postgresql_server.database() as second:
        urls = [
            (shown(url, "postgresql+psycopg"), shown(url, "postgresql+asyncpg") if kind.is_async else None)
            for url in (first, second)
        ]
        commands = Guide(PAGE, tmp_path, urls[0][0], async_url=urls[0][1], second=urls[1]).follow()
    assert commands == list(commands_of_the_page())


def commands_of_the_page() -> Iterator[str]:
    for body in re.findall(r"^```shell\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield from body.splitlines()


def test_every_block_of_the_guide_is_a_step_or_says_that_it_is_none():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|diff|ini|shell|text)$", text, re.MULTILINE)
    read_only = text.count("<!-- no-run -->")
    assert len(blocks) == read_only + sum(step.kind not in ("start", "again") for step in steps(PAGE))


def test_an_edit_keeps_the_indentation_and_refuses_what_is_not_there():
    assert edited("def f():\n    a = 1\n    b\n", "-a = 1\n-b\n+a = 2\n+c\n", "") == "def f():\n    a = 2\n    c\n"
    with pytest.raises(AssertionError, match="there is no"):
        edited("a\n", "-b\n+c\n", "here")
