"""The guide to migrations, followed to the letter: each file is made, each command is run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.docs.guide import Guide, edited, steps
from tests.docs.pages import ROOT
from tests.support import sqlite

PAGE = ROOT / "docs" / "migrations.md"


@pytest.fixture(autouse=True)
def _sqlite_vec_is_there() -> None:
    if reason := sqlite.why_vec_unavailable():
        pytest.skip(reason)


@pytest.mark.soak
def test_the_guide_can_be_followed_on_sqlite(tmp_path: Path):
    numbers = itertools.count(1)

    def databases() -> URL:
        return URL.create("sqlite", database=str(tmp_path / f"{next(numbers)}.db"))

    commands = Guide(PAGE, tmp_path, databases, async_driver="sqlite+aiosqlite").follow()
    assert len(commands) > 30


def test_the_guide_can_be_followed_on_postgresql(tmp_path: Path, postgresql_server: Any):
    with ExitStack() as stack:

        def databases() -> URL:
            url: URL = stack.enter_context(postgresql_server.database())
            return url.set(drivername="postgresql+psycopg")

        commands = Guide(PAGE, tmp_path, databases).follow()
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
