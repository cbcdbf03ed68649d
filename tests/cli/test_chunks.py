"""``sqla-vector check`` on an application with chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Shop
from tests.support.backends import Backend


class Chunked(Shop):
    source = "chunked.py"


@pytest.fixture
def chunked(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chunked]:
    """The application, on an empty database with its tables."""
    found = Chunked(tmp_path, backend, monkeypatch)
    yield found
    found.close()


@pytest.mark.backends("psycopg", "asyncpg", "pysqlite3")
def test_check_compares_chunks_and_puts_them_right(chunked: Chunked) -> None:
    chunked.add("One. Two.", "Three.", None)
    shown = chunked("check")
    assert shown.exit_code == 1
    assert "Article.chunks: missing, for example [1], [2]" in shown.stdout
    found = chunked.json("check", code=1)
    assert found["is_clean"] is False
    (column,) = found["columns"]
    assert (column["column"], column["rows"]) == ("ArticleChunk.embedding", 0)
    (chunks,) = found["chunks"]["chunks"]
    assert (chunks["rows"], chunks["current"], chunks["missing"]) == (3, 1, 2)
    assert "chunks" not in chunked.json("check", "--column", "ArticleChunk.embedding")
    shown = chunked("check", "--fix")
    assert (shown.exit_code, "the chunks of 2 rows were put right" in shown.stdout) == (0, True), shown.stdout
    chunked("worker", "--until-empty")
    found = chunked.json("check")
    assert (found["is_clean"], found["columns"][0]["current"]) == (True, 3)


@pytest.mark.backends("pysqlite3")
def test_check_with_fix_fails_while_a_text_cannot_be_split(chunked: Chunked) -> None:
    chunked.add("One.", "poison")
    shown = chunked("check", "--fix")
    assert shown.exit_code == 1
    assert "Article.chunks: [2] cannot be split: the splitter failed: ValueError in" in shown.stdout
    assert chunked.json("check", "--fix", code=1)["chunks"]["chunks"][0]["invalid"] == 1
