"""A vector index is built anew under its name: as it was, or otherwise; the old one serves until then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import NullPool

from sqla_vector import InvalidOption, MigrationError, vector_index
from sqla_vector.alembic import RebuildVectorIndexOp
from sqla_vector.alembic.definition import IndexDefinition
from tests.support.backends import Backend
from tests.support.change import OLD, articles, assert_search, fill, rows
from tests.support.migrations import Project
from tests.support.statements import sync_engine

DRIVERS = pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg", "pysqlite3", "aiosqlite")
BOTH = pytest.mark.backends("psycopg", "pysqlite3")
PSYCOPG = pytest.mark.backends("psycopg")

NAME = "ix_article_embedding"
VECTORS = {row["id"]: row["embedding"] for row in rows(8)}


def rebuild(**options: Any) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f'op.rebuild_vector_index("{NAME}", "article", "embedding", {given})'


def model(**options: Any) -> Any:
    metadata = articles(OLD, index=False)
    metadata.tables["article"].append_constraint(vector_index(NAME, "embedding", **options))
    return metadata


def prepared(tmp_path: Path, backend: Backend) -> Project:
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, articles(OLD))
    fill(backend, project.engine, articles(OLD), rows(8))
    return project


def identity(project: Project) -> Any:
    """Return what differs when an index is built anew."""
    if project.backend.family == "postgresql":
        sql = "SELECT relname, oid, relfilenode FROM pg_class WHERE relname LIKE 'ix\\_article\\_emb%'"
    else:
        # Built anew it is the last in the catalogue.
        sql = "SELECT name, rowid FROM sqlite_master WHERE name = 'ix_article_embedding'"
    return project.backend.run_connection(project.engine, lambda c: c.execute(text(sql)).all())


@DRIVERS
@pytest.mark.parametrize("concurrently", [False, True])
def test_an_index_is_built_anew_as_it_was(tmp_path, backend, concurrently):
    project = prepared(tmp_path, backend)
    if backend.family == "sqlite":  # so that it is not the last by itself
        backend.run_connection(project.engine, lambda c: c.execute(text("CREATE TABLE later (id INTEGER)")) and None)
    before = identity(project)
    project.write(rebuild(metric="l2", concurrently=concurrently))
    project.upgrade()
    after = identity(project)
    assert len(after) == 1
    assert after != before
    assert_search(backend, project.engine, articles(OLD), VECTORS)
    if backend.family == "postgresql":
        assert project.drift(articles(OLD)) == []


@DRIVERS
@pytest.mark.parametrize("concurrently", [False, True])
def test_an_index_is_built_otherwise_and_back(tmp_path, backend, concurrently):
    project = prepared(tmp_path, backend)
    project.write(
        rebuild(metric="l1", existing={"metric": "l2"}, concurrently=concurrently),
        rebuild(metric="l2", existing={"metric": "l1"}, concurrently=concurrently),
    )
    project.upgrade()
    assert project.drift(model(metric="l1")) == []
    project.downgrade()
    assert project.drift(articles(OLD)) == []
    assert_search(backend, project.engine, articles(OLD), VECTORS)


@BOTH
def test_a_change_that_was_done_already_is_not_done_again(tmp_path, backend):
    project = prepared(tmp_path, backend)
    project.write(rebuild(metric="l1", existing={"metric": "l2"}))
    project.upgrade()
    before = identity(project)
    project.write(rebuild(metric="l1", existing={"metric": "l2"}))
    project.upgrade()
    assert identity(project) == before


@BOTH
def test_what_autogenerate_writes_can_be_run_both_ways(tmp_path, backend):
    project = prepared(tmp_path, backend)
    assert "op.rebuild_vector_index(" in project.revision(model(metric="cosine")).read_text()
    project.upgrade()
    assert project.drift(model(metric="cosine")) == []
    project.downgrade()
    assert project.drift(articles(OLD)) == []


@pytest.mark.backends("psycopg", "psycopg2", "asyncpg")
@pytest.mark.parametrize("concurrently", [False, True])
def test_the_old_index_serves_until_the_new_one_is_there(tmp_path, backend, concurrently):
    project = prepared(tmp_path, backend)
    others = create_engine(backend.url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    seen: list[Any] = []

    @event.listens_for(sync_engine(project.engine), "after_cursor_execute")
    def look(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "CREATE INDEX" in statement:
            with others.connect() as other:
                sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_article_embedding'::regclass"
                # The table can be read, and within a transaction the new index is not seen by others.
                seen.append((other.scalar(text(sql)), other.scalar(text("SELECT count(*) FROM article"))))

    project.write(rebuild(metric="l1", concurrently=concurrently))
    project.upgrade()
    assert seen == [(True, 8)]
    assert project.drift(model(metric="l1")) == []


@BOTH
def test_a_rebuild_that_fails_leaves_the_old_index(tmp_path, backend):
    project = prepared(tmp_path, backend)
    before = identity(project)
    project.write(rebuild(metric="l1") + "\nop.execute('SELECT nothing FROM nowhere')")
    with pytest.raises(Exception, match="nowhere"):
        project.upgrade()
    assert identity(project) == before
    assert project.drift(articles(OLD)) == []
    assert_search(backend, project.engine, articles(OLD), VECTORS)


@BOTH
def test_an_index_that_is_missing_is_built(tmp_path, backend):
    project = prepared(tmp_path, backend)
    project.write(f'op.drop_vector_index("{NAME}", "article")\n{rebuild(metric="l2")}')
    project.upgrade()
    assert project.drift(articles(OLD)) == []


@BOTH
def test_what_cannot_be_built_is_refused(tmp_path, backend):
    project = prepared(tmp_path, backend)
    before = identity(project)
    path = project.write(rebuild(metric="l2"))
    for good, bad, error in (
        ('"article"', '"nothing"', MigrationError),
        ('"embedding"', '"nothing"', MigrationError),
        ('"embedding"', '"title"', InvalidOption),
        ("metric='l2'", "metrics='l2'", InvalidOption),
        ("metric='l2'", "metric='l2', m=1", InvalidOption),
    ):
        body = path.read_text()
        path.write_text(body.replace(good, bad))
        with pytest.raises(error):
            project.upgrade()
        path.write_text(body)
    assert identity(project) == before


def test_the_reverse_builds_what_was_there():
    new = IndexDefinition(NAME, "article", "embedding", {"metric": "l1"})
    old = IndexDefinition(NAME, "article", "embedding", {"metric": "l2"})
    op = RebuildVectorIndexOp(new, old)
    other = op.reverse()
    assert isinstance(other, RebuildVectorIndexOp)
    assert (other.definition, other.existing) == (old, new)
    assert other.reverse().to_diff_tuple() == op.to_diff_tuple()
    again = RebuildVectorIndexOp(new).reverse()
    assert isinstance(again, RebuildVectorIndexOp)
    assert again.definition == new
