"""The page on the command line, followed to the letter."""

from __future__ import annotations

import itertools
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.docs.guide import Guide
from tests.docs.pages import ROOT
from tests.support import sqlite

PAGE = ROOT / "docs" / "cli.md"


@pytest.fixture(autouse=True)
def _named_application(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := sqlite.why_vec_unavailable():
        pytest.skip(reason)
    # Each line of the page has a shell of its own, in which the page's export is forgotten.
    monkeypatch.setenv("SQLA_VECTOR_APP", "shop:Session")


def _commands() -> list[str]:
    shown = re.findall(r"^```shell\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for body in shown for line in body.splitlines()]


def test_the_page_can_be_followed_on_sqlite(tmp_path: Path):
    numbers = itertools.count(1)

    def databases() -> URL:
        return URL.create("sqlite", database=str(tmp_path / f"{next(numbers)}.db"))

    assert Guide(PAGE, tmp_path, databases).follow() == _commands()


@pytest.mark.soak
def test_the_page_can_be_followed_on_postgresql(tmp_path: Path, postgresql_server: Any):
    with ExitStack() as stack:

        def databases() -> URL:
            url: URL = stack.enter_context(postgresql_server.database())
            return url.set(drivername="postgresql+psycopg")

        assert Guide(PAGE, tmp_path, databases).follow() == _commands()


def test_the_page_has_every_command():
    from sqla_vector.cli.program import program

    named = [command.name for command in program.registered_commands]
    named += [group.name for group in program.registered_groups]
    for name in named:
        assert f"\n## {name}\n" in PAGE.read_text(encoding="utf-8")
