"""Indexes built and dropped beside the traffic: what is left over, what is there already, who is blocked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

import sqla_vector.alembic
from sqla_vector import MigrationError, Vector, vector_index
from tests.support.backends import Backend
from tests.support.change import OLD, articles, assert_search, fill, rows
from tests.support.migrations import Project

POSTGRESQL = pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg")
PSYCOPG = pytest.mark.backends("psycopg")
SQLITE = pytest.mark.backends("pysqlite3", "aiosqlite")
BOTH = pytest.mark.backends("psycopg", "pysqlite3")

NAME = "ix_article_embedding"
CREATE = 'op.create_vector_index("ix_article_embedding", "article", "embedding", metric="l2", concurrently=True)'
DROP = 'op.drop_vector_index("ix_article_embedding", "article", concurrently=True)'
INDEXES = (
    "SELECT c.relname, i.indisvalid, pg_get_indexdef(c.oid), c.oid FROM pg_index i"
    " JOIN pg_class c ON c.oid = indexrelid JOIN pg_am a ON a.oid = c.relam"
    " WHERE a.amname IN ('hnsw', 'ivfflat') ORDER BY 1"
)


def prepared(tmp_path: Path, backend: Backend, *, index: bool = False, count: int = 6) -> Project:
    project = Project(tmp_path, backend)
    metadata = articles(OLD, index=index)
    backend.create_all(project.engine, metadata)
    fill(backend, project.engine, metadata, rows(count))
    return project


@pytest.fixture
def others(backend: Backend) -> Iterator[Engine]:
    """Somebody else's engine, of the synchronous driver."""
    engine = create_engine(
        backend.url.set(drivername="postgresql+psycopg"), plugins=["sqla_vector"], poolclass=NullPool
    )
    yield engine
    engine.dispose()


def indexes(others: Engine) -> dict[str, Any]:
    """Return the vector indexes by name: whether they are valid, and their definition."""
    with others.connect() as connection:
        return {row[0]: row for row in connection.execute(text(INDEXES))}


@contextmanager
def a_transaction(others: Engine) -> Iterator[None]:
    """Hold a transaction that has written to the table, for which a concurrent build waits."""
    with others.connect() as connection, connection.begin():
        connection.execute(text("UPDATE article SET title = title WHERE id = 1"))
        yield


def leave_invalid(others: Engine, statement: str) -> None:
    """Have a concurrent build interrupted by the server, which leaves an invalid index."""
    with a_transaction(others), others.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("SET statement_timeout = '300ms'"))
        with pytest.raises(DBAPIError, match="statement timeout"):
            connection.execute(text(statement))


HNSW = f"CREATE INDEX CONCURRENTLY {NAME} ON article USING hnsw (embedding vector_l2_ops)"


@POSTGRESQL
def test_an_index_is_built_and_dropped(tmp_path, backend, others):
    project = prepared(tmp_path, backend)
    project.write(CREATE, DROP)
    project.upgrade()
    assert indexes(others)[NAME][1]
    assert project.drift(articles(OLD)) == []
    project.downgrade()
    assert indexes(others) == {}


@POSTGRESQL
def test_what_an_interrupted_build_left_is_built_anew(tmp_path, backend, others, caplog):
    project = prepared(tmp_path, backend)
    leave_invalid(others, HNSW)
    left = indexes(others)[NAME]
    assert not left[1]
    project.write(CREATE)
    with caplog.at_level(logging.WARNING, "alembic.sqla_vector"):
        project.upgrade()
    assert "left over from a build that was interrupted" in caplog.text
    now = indexes(others)
    assert now.keys() == {NAME}
    assert now[NAME][1]
    assert now[NAME][3] != left[3]
    vectors = {row["id"]: row["embedding"] for row in rows(6)}
    assert_search(backend, project.engine, articles(OLD), vectors)


@PSYCOPG
def test_what_an_interrupted_build_left_is_no_obstacle_within_a_transaction(tmp_path, backend, others):
    project = prepared(tmp_path, backend)
    leave_invalid(others, HNSW)
    project.write(CREATE.replace(", concurrently=True", ""))
    project.upgrade()
    assert indexes(others)[NAME][1]


@PSYCOPG
def test_what_an_interrupted_build_left_is_noticed_by_autogenerate(tmp_path, backend, others):
    project = prepared(tmp_path, backend)
    leave_invalid(others, HNSW)
    assert project.drift(articles(OLD)) != []
    project.revision(articles(OLD))
    project.upgrade()
    assert indexes(others)[NAME][1]
    assert project.drift(articles(OLD)) == []


@PSYCOPG
def test_what_an_interrupted_build_left_can_be_dropped(tmp_path, backend, others):
    project = prepared(tmp_path, backend)
    leave_invalid(others, HNSW)
    project.write(DROP)
    project.upgrade()
    assert indexes(others) == {}


@PSYCOPG
@pytest.mark.parametrize("concurrently", [True, False])
def test_what_an_interrupted_rebuild_left_is_built_anew(tmp_path, backend, others, concurrently):
    project = prepared(tmp_path, backend, index=True)
    leave_invalid(others, HNSW.replace(NAME, f"{NAME}__new"))
    before = indexes(others)
    assert {name: row[1] for name, row in before.items()} == {NAME: True, f"{NAME}__new": False}
    project.write(
        f'op.rebuild_vector_index("{NAME}", "article", "embedding", metric="l2", m=8, concurrently={concurrently})'
    )
    project.upgrade()
    now = indexes(others)
    assert now.keys() == {NAME}
    assert now[NAME][1]
    assert "m='8'" in now[NAME][2]


@PSYCOPG
@pytest.mark.parametrize("concurrently", [True, False])
def test_a_finished_index_of_an_interrupted_rebuild_takes_its_place(tmp_path, backend, others, concurrently):
    project = prepared(tmp_path, backend, index=True)
    with others.begin() as connection:
        connection.execute(text(f"CREATE INDEX {NAME}__new ON article USING hnsw (embedding vector_l2_ops)"))
    new = indexes(others)[f"{NAME}__new"]
    project.write(
        f'op.rebuild_vector_index("{NAME}", "article", "embedding", metric="l2", concurrently={concurrently})'
    )
    project.upgrade()
    now = indexes(others)
    assert now.keys() == {NAME}
    assert now[NAME][3] == new[3]


@PSYCOPG
def test_another_index_of_the_name_of_a_rebuild_is_refused(tmp_path, backend, others):
    project = prepared(tmp_path, backend, index=True)
    with others.begin() as connection:
        connection.execute(text(f"CREATE INDEX {NAME}__new ON article USING hnsw (embedding vector_cosine_ops)"))
    before = indexes(others)
    project.write(f'op.rebuild_vector_index("{NAME}", "article", "embedding", metric="l2", concurrently=True)')
    with pytest.raises(MigrationError, match=f"another index {NAME}__new"):
        project.upgrade()
    assert indexes(others) == before


@BOTH
@pytest.mark.parametrize("argument", ["concurrently", "if_not_exists"])
def test_the_same_index_is_left_as_it_is(tmp_path, backend, argument, caplog):
    project = prepared(tmp_path, backend, index=True)
    read = text(
        "SELECT relfilenode FROM pg_class WHERE relname = 'ix_article_embedding'"
        if backend.family == "postgresql"
        else "SELECT rootpage FROM sqlite_master WHERE name = 'ix_article_embedding_rowids'"
    )
    before = backend.run_connection(project.engine, lambda c: c.scalar(read))
    project.write(CREATE.replace("concurrently", argument))
    with caplog.at_level(logging.INFO, "alembic.sqla_vector"):
        project.upgrade()
    assert "is there already" in caplog.text
    assert backend.run_connection(project.engine, lambda c: c.scalar(read)) == before


@BOTH
@pytest.mark.parametrize("argument", ["concurrently", "if_not_exists"])
def test_another_index_of_the_same_name_is_refused(tmp_path, backend, argument):
    project = prepared(tmp_path, backend, index=True)
    project.write(CREATE.replace('"l2"', '"cosine"').replace("concurrently", argument))
    with pytest.raises(MigrationError, match="which differs"):
        project.upgrade()
    assert project.drift(articles(OLD)) == []


@BOTH
@pytest.mark.parametrize("argument", ["concurrently", "if_not_exists"])
def test_an_index_of_the_same_name_on_another_table_is_refused(tmp_path, backend, argument):
    project = prepared(tmp_path, backend, index=True)
    other = articles(OLD, name="other", index=False)
    backend.create_all(project.engine, other)
    project.write(CREATE.replace('"article"', '"other"').replace("concurrently", argument))
    with pytest.raises(MigrationError, match="article"):
        project.upgrade()
    assert project.drift(articles(OLD)) != []  # the other table has no model, and nothing else differs


@PSYCOPG
@pytest.mark.parametrize("argument", ["concurrently", "if_not_exists"])
def test_the_same_partial_index_is_recognized(tmp_path, backend, others, argument):
    project = prepared(tmp_path, backend)
    created = CREATE.replace('"l2"', '"l2", where="title <> \'x\' AND id > 0"').replace("concurrently", argument)
    project.write(created)
    project.upgrade()
    before = indexes(others)
    assert "WHERE" in before[NAME][2]
    project.write(created)
    project.upgrade()
    assert indexes(others) == before
    project.write(created.replace("id > 0", "id > 1"))
    with pytest.raises(MigrationError, match="predicate"):
        project.upgrade()
    assert indexes(others) == before


@POSTGRESQL
def test_others_write_while_the_index_is_built(tmp_path, backend, others):
    project = prepared(tmp_path, backend)
    project.write(CREATE)
    failures: list[BaseException] = []

    def upgrade() -> None:
        try:
            project.upgrade()
        except BaseException as error:
            failures.append(error)

    builder = threading.Thread(target=upgrade)
    with a_transaction(others):
        builder.start()
        # The build has begun, and waits for the transaction.
        while NAME not in indexes(others):
            assert builder.is_alive(), failures
            time.sleep(0.01)
        with others.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '20s'"))
            connection.execute(
                insert(articles(OLD).tables["article"]), [{"id": 99, "title": "new", "embedding": [1, 2, 3]}]
            )
            connection.execute(text("UPDATE article SET embedding = '[3,2,1]' WHERE id = 2"))
            connection.execute(text("DELETE FROM article WHERE id = 3"))
        assert builder.is_alive()
    builder.join()
    assert failures == []
    assert indexes(others)[NAME][1]
    vectors = {row["id"]: row["embedding"] for row in rows(6) if row["id"] != 3}
    assert_search(backend, project.engine, articles(OLD), {**vectors, 2: [3, 2, 1], 99: [1, 2, 3]})


@POSTGRESQL
@pytest.mark.parametrize("what", ["create", "drop", "rebuild"])
def test_a_transaction_around_the_migration_is_refused(tmp_path, backend, others, what):
    project = prepared(tmp_path, backend, index=what != "create")
    before = indexes(others)
    options = sqla_vector.alembic.options()

    def migrate(connection: Any) -> None:
        operations: Any = Operations(MigrationContext.configure(connection, opts=options))
        if what == "drop":
            operations.drop_vector_index(NAME, "article", concurrently=True)
        else:
            directive = getattr(operations, f"{what}_vector_index")
            directive(NAME, "article", "embedding", metric="l2", concurrently=True)

    def within_a_transaction(connection: Any) -> None:
        connection.execute(text("UPDATE article SET title = 'x'"))
        migrate(connection)

    with pytest.raises(MigrationError, match="commits by itself"):
        backend.run_connection(project.engine, within_a_transaction)
    assert indexes(others) == before
    with others.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM article WHERE title = 'x'")) == 0


@SQLITE
def test_sqlite_builds_within_the_transaction_whatever_is_said(tmp_path, backend):
    project = prepared(tmp_path, backend)
    project.write(f"{CREATE}\n{DROP}\n{CREATE}\nop.execute('SELECT 1 FROM nothing')")
    with pytest.raises(DBAPIError, match="nothing"):
        project.upgrade()
    assert project.drift(articles(OLD, index=False)) == []
    (project.versions / "0001_by_hand.py").unlink()
    project._count = 0
    project.write(CREATE, DROP)
    project.upgrade()
    assert project.drift(articles(OLD)) == []
    assert_search(backend, project.engine, articles(OLD), {row["id"]: row["embedding"] for row in rows(6)})
    project.downgrade()
    assert project.drift(articles(OLD, index=False)) == []


@PSYCOPG
def test_what_came_before_in_the_revision_is_committed_first(tmp_path, backend, others):
    project = prepared(tmp_path, backend)
    project.write(f"op.add_column('article', sa.Column('pages', sa.Integer))\n{CREATE}\nop.execute('SELECT nothing')")
    with pytest.raises(DBAPIError, match="nothing"):
        project.upgrade()
    assert indexes(others)[NAME][1]
    with others.connect() as connection:
        assert connection.execute(text("SELECT pages FROM article")).all() == [(None,)] * 6


@PSYCOPG
def test_an_index_in_another_schema_is_built_and_dropped_there(tmp_path, backend, others):
    project = Project(tmp_path, backend)
    with others.begin() as connection:
        connection.execute(text("CREATE SCHEMA other"))
    metadata = MetaData()
    Table(
        "article",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("title", String(40)),
        Column("embedding", Vector(OLD)),
        vector_index(NAME, "embedding", metric="l2"),
        schema="other",
    )
    backend.create_all(project.engine, articles(OLD, schema="other", index=False))
    project.write(CREATE.replace(")", ', schema="other")'), DROP.replace(")", ', schema="other")'))
    project.upgrade()
    assert " ON other.article " in indexes(others)[NAME][2]
    project.downgrade()
    assert indexes(others) == {}
