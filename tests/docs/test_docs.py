"""What the README and the documentation show is what happens."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, embedded_columns, embedding_column
from tests.docs.pages import PAGES, ROOT, blocks, run
from tests.support import sqlite

WITH_NODE = [page for page in PAGES if any(block.marker == "elasticsearch" for block in blocks(page))]
WITH_SERVER = [page for page in PAGES if any(block.marker == "postgresql" for block in blocks(page))]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := sqlite.why_vec_unavailable():
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _beside_another_program() -> Iterator[None]:
    """Map what no page means, so that each one has to say which models it does mean."""
    made = []
    for _ in range(2):

        class Base(DeclarativeBase): ...

        class Article(Base):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str]
            embedding: Mapped[Any | None] = embedding_column(Vector(2), source="text", embedder="none")
            embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

        assert embedded_columns(Article)
        made.append(Base)
    yield
    for base in made:
        base.registry.dispose()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path):
    run(page, server=None)


@pytest.mark.parametrize("page", WITH_SERVER, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_with_postgresql(page: Path, postgresql_server: Any):
    with postgresql_server.database() as url:
        run(page, server=url)


@pytest.mark.parametrize("page", WITH_NODE, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_with_elasticsearch(page: Path, elasticsearch_node: Any):
    run(page, server=None, node=elasticsearch_node.url)


def test_the_readme_opens_with_an_example_that_prints_what_it_says(capsys: pytest.CaptureFixture[str]):
    said = re.search(r"# (\S+)  (\w+), then (\S+)  (\w+)$", blocks(ROOT / "README.md")[0].code, re.MULTILINE)
    assert said is not None
    run(ROOT / "README.md", server=None)
    assert capsys.readouterr().out.split() == list(said.groups())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_the_asynchronous_example_of_the_readme_finds_its_article(driver: str, postgresql_server: Any):
    with postgresql_server.database() as url:
        namespace = run(ROOT / "README.md", server=url)
        shown = url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
        assert asyncio.run(namespace["closest_titles"](shown)) == ["Cats: 0.99"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
