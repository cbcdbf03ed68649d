"""What autogenerate finds, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pgvector.sqlalchemy
import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Index, Integer, MetaData, String, Table, UniqueConstraint, insert, text

from sqla_vector import BitVector, HalfVector, IndexNotUsable, Vector, nearest, vector_index
from tests.support.backends import AnyEngine, Backend
from tests.support.brute_force import make_vectors
from tests.support.migrations import Project

VEC0 = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")
POSTGRESQL = pytest.mark.backends(family="postgresql")
INDEXED = pytest.mark.backends(
    "psycopg", "psycopg_async", "psycopg2", "asyncpg", "sqlite_stdlib", "pysqlite3", "aiosqlite"
)


def models(*items: Any, type_: Any = None, **options: Any) -> MetaData:
    """Return models with one table and, if there are options, one index."""
    metadata = MetaData()
    Table(
        "article",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("lang", String(8)),
        Column("slug", String(20)),
        Column("embedding", type_ or Vector(8)),
        *items,
        *([vector_index("ix_article", "embedding", **options)] if options else []),
    )
    return metadata


def drift(tmp_path: Path, backend: Backend, before: MetaData, after: MetaData, **options: Any) -> list[Any]:
    """Return the differences between a database made from some models, and others."""
    project = Project(tmp_path, backend, **options)
    backend.create_all(project.engine, before)
    assert project.drift(before) == []
    return project.drift(after)


def names(differences: list[Any]) -> list[str]:
    return [difference[0] for difference in differences]


@pytest.mark.backends("psycopg", "asyncpg")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"metric": "l2"}, {"metric": "l2", "method": "ivfflat"}),
        ({"metric": "l2"}, {"metric": "cosine"}),
        ({"metric": "l2"}, {"metric": "l2", "m": 17}),
        ({"metric": "l2"}, {"metric": "l2", "ef_construction": 65}),
        ({"metric": "l2", "method": "ivfflat"}, {"metric": "l2", "method": "ivfflat", "lists": 101}),
        ({"metric": "l2"}, {"metric": "l2", "precision": "half"}),
        ({"metric": "l2"}, {"metric": "l2", "precision": "binary"}),
        ({"metric": "l2"}, {"metric": "l2", "where": text("id > 3")}),
        ({"metric": "l2", "where": text("id > 3")}, {"metric": "l2", "where": text("id > 4")}),
        ({"metric": "l2", "where": text("id > 3")}, {"metric": "l2"}),
    ],
    ids=["method", "metric", "m", "ef", "lists", "half", "binary", "partial", "predicate", "whole"],
)
def test_every_difference_of_an_index_on_postgresql_is_found(tmp_path, backend: Backend, before, after):
    assert names(drift(tmp_path, backend, models(**before), models(**after))) == ["rebuild_vector_index"]


@pytest.mark.backends("psycopg", "asyncpg")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"metric": "l2"}, {"metric": "l2", "m": 16, "ef_construction": 64}),
        ({"metric": "l2", "method": "ivfflat"}, {"metric": "l2", "method": "ivfflat", "lists": 100}),
        ({"metric": "l2"}, {"metric": "l2", "include": ("lang",)}),
        ({"metric": "l2"}, {"metric": "l2", "partition_by": "lang", "value_range": 3.0}),
        ({"metric": "l2", "precision": "half"}, {"metric": "l2", "precision": "int8"}),
        ({"metric": "l2", "where": text("id > 3")}, {"metric": "l2", "where": text("(id>3)")}),
        ({"metric": "l2"}, {"metric": "l2", "method": "auto"}),
    ],
    ids=["defaults", "lists", "include", "partition", "int8", "predicate", "auto"],
)
def test_what_makes_no_other_index_on_postgresql_is_no_difference(tmp_path, backend: Backend, before, after):
    assert drift(tmp_path, backend, models(**before), models(**after)) == []


@POSTGRESQL
def test_an_index_whose_build_was_interrupted_is_built_anew(tmp_path, backend: Backend):
    project = Project(tmp_path, backend)
    metadata = models(metric="l2")
    backend.create_all(project.engine, metadata)

    def spoil(connection: Connection) -> None:
        connection.execute(text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_article'::regclass"))

    backend.run_connection(project.engine, spoil)
    assert names(project.drift(metadata)) == ["rebuild_vector_index"]
    project.revision(metadata)
    project.upgrade()
    assert project.drift(metadata) == []


@VEC0
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"metric": "l2"}, {"metric": "cosine"}),
        ({"metric": "l2"}, {"metric": "l2", "precision": "int8"}),
        ({"metric": "l2"}, {"metric": "l2", "precision": "binary"}),
        ({"metric": "l2"}, {"metric": "l2", "include": ("lang",)}),
        ({"metric": "l2", "include": ("lang", "slug")}, {"metric": "l2", "include": ("lang",)}),
        ({"metric": "l2"}, {"metric": "l2", "partition_by": "lang"}),
        (
            {"metric": "l2", "precision": "int8", "value_range": 2},
            {"metric": "l2", "precision": "int8", "value_range": 3},
        ),
        ({"metric": "l2"}, {"metric": "l2", "method": "ivfflat"}),
        ({"metric": "l2", "method": "ivfflat", "lists": 3}, {"metric": "l2"}),
        ({"metric": "l2", "method": "ivfflat", "lists": 3}, {"metric": "l2", "method": "ivfflat", "lists": 4}),
        ({"metric": "l2", "method": "ivfflat", "lists": 3}, {"metric": "l2", "method": "ivfflat"}),
        ({"metric": "l2", "method": "ivfflat"}, {"metric": "cosine", "method": "ivfflat"}),
        # The values keep their places, and searches would look for the one among the other.
        ({"metric": "l2", "include": ("lang", "slug")}, {"metric": "l2", "include": ("slug", "lang")}),
        ({"metric": "l2", "partition_by": ("lang", "slug")}, {"metric": "l2", "partition_by": ("slug", "lang")}),
        (
            {"metric": "l2", "method": "ivfflat", "include": ("lang",), "partition_by": "slug"},
            {"metric": "l2", "method": "ivfflat", "include": ("slug",), "partition_by": "lang"},
        ),
    ],
    ids=[
        "metric",
        "int8",
        "binary",
        "include",
        "less",
        "partition",
        "range",
        "lists",
        "no lists",
        "number of lists",
        "any number of lists",
        "metric of lists",
        "order",
        "order of partitions",
        "exchanged",
    ],
)
def test_every_difference_of_an_index_on_sqlite_is_found(tmp_path, backend: Backend, before, after):
    assert names(drift(tmp_path, backend, models(**before), models(**after))) == ["rebuild_vector_index"]


@VEC0
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"metric": "l2"}, {"metric": "l2", "m": 20, "ef_construction": 90}),
        ({"metric": "l2"}, {"metric": "l2", "precision": "half"}),
        ({"metric": "l2"}, {"metric": "l2", "where": text("id > 3")}),
        ({"metric": "l2"}, {"metric": "l2", "method": "auto"}),
        ({"metric": "l2", "precision": "binary"}, {"metric": "l1", "precision": "binary"}),
        ({"metric": "l2", "method": "ivfflat"}, {"metric": "l2", "method": "ivfflat", "precision": "half"}),
    ],
    ids=["options", "half", "where", "auto", "binary", "half lists"],
)
def test_what_sqlite_has_no_use_for_is_no_difference(tmp_path, backend: Backend, before, after):
    assert drift(tmp_path, backend, models(**before), models(**after)) == []


@VEC0
def test_a_unique_constraint_changes_the_triggers_of_the_index(tmp_path, backend: Backend):
    after = models(UniqueConstraint("slug", name="uq_article_slug"), metric="l2")
    found = drift(tmp_path, backend, models(metric="l2"), after)
    assert names(found) == ["drop_vector_index", "add_constraint", "create_vector_index"]


@pytest.mark.backends("psycopg", "sqlite_stdlib", "pysqlite3")
@pytest.mark.parametrize("rows", [9_999, 10_000])
def test_an_automatic_index_is_added_when_there_are_rows_enough(tmp_path, backend: Backend, rows: int):
    project = Project(tmp_path, backend)
    metadata = models(metric="l2", method="auto")
    backend.create_all(project.engine, metadata)

    def fill(connection: Connection) -> None:
        connection.execute(insert(metadata.tables["article"]), [{"lang": "en"}] * rows)

    backend.run_connection(project.engine, fill)
    assert names(project.drift(metadata)) == (["create_vector_index"] if rows == 10_000 else [])
    if rows == 10_000:
        project.revision(metadata)
        project.upgrade()
        assert project.drift(metadata) == []


@POSTGRESQL
def test_a_missing_extension_is_created_first_and_once(tmp_path, backend: Backend):
    project = Project(tmp_path, backend)
    metadata = models(metric="l2")
    Table("bits", metadata, Column("id", Integer, primary_key=True), Column("b", BitVector(8)))
    Table("abacus", metadata, Column("id", Integer, primary_key=True))
    found = names(project.drift(metadata))
    assert found[0] == "create_vector_extension"
    assert found.count("create_vector_extension") == 1
    written = project.revision(metadata).read_text()
    assert written.count("op.create_vector_extension()") == 1
    assert written.count("op.drop_vector_extension()") == 1
    assert written.count("op.create_vector_index(") == 1
    assert written.count("op.create_table('article'") == 1
    project.upgrade()
    assert project.drift(metadata) == []
    project.downgrade()
    assert names(project.drift(metadata)) == found


def test_nothing_of_vec0_appears_where_the_models_have_no_such_table(tmp_path, backend: Backend):
    project = Project(tmp_path, backend, engine=_going_without(backend))
    metadata = models(metric="cosine", include=("lang",))
    Table(
        "page",
        metadata,
        Column("path", String(20), primary_key=True),
        Column("slug", String(20), unique=True),
        Column("embedding", Vector(8)),
        vector_index("ix_page", "embedding", metric="l2"),
    )
    project.revision(metadata)
    project.upgrade()
    assert project.drift(metadata) == []
    # Not even when all of it goes.
    assert sorted(item[1].name for item in project.drift(MetaData()) if item[0] == "remove_table") == [
        "article",
        "page",
    ]
    project.revision(MetaData())
    project.upgrade()
    assert project.drift(MetaData()) == []
    project.downgrade()
    project.downgrade()


def _going_without(backend: Backend) -> AnyEngine:
    if backend.name == "sqlite_numpy":
        return backend.make_engine(vector_skip_missing_index=True)
    return backend.make_engine()


@pytest.mark.backends("sqlite_numpy")
def test_without_sqlite_vec_an_index_is_refused_by_name_or_left_out_without_drift(tmp_path, backend: Backend):
    metadata = models(metric="l2")
    refusing = Project(tmp_path / "refusing", backend)
    backend.create_all(refusing.engine, models())
    with pytest.raises(IndexNotUsable, match=r"ix_article: this Python's SQLite cannot load sqlite-vec.*pip install"):
        refusing.drift(metadata)
    going = Project(tmp_path / "going", backend, engine=_going_without(backend))
    assert going.drift(metadata) == []


@INDEXED
def test_a_connection_without_the_plugin_is_attached(tmp_path, backend: Backend):
    metadata = models(metric="l2", include=("lang",))
    backend.create_all(backend.make_engine(), metadata)
    plain = Project(tmp_path, backend, engine=backend.make_engine(plugins=[]))
    assert plain.drift(metadata) == []
    assert names(plain.drift(models())) == ["drop_vector_index"]
    assert names(plain.drift(models(type_=Vector(9)))) == ["ChangeVectorColumnOp"]


def test_the_indexes_of_the_models_are_given_back_even_after_an_error(tmp_path, backend: Backend):
    def fail(object_: Any, name: Any, type_: str, reflected: bool, compare_to: Any) -> bool:
        if type_ == "index" and name == "ix_lang":
            raise RuntimeError("a filter that fails")
        return True

    metadata = models(Index("ix_lang", "lang"), metric="l2")
    project = Project(tmp_path, backend, engine=_going_without(backend), include_object=fail)
    with pytest.raises(RuntimeError, match="a filter that fails"):
        project.drift(metadata)
    assert {index.name for index in metadata.tables["article"].indexes} == {"ix_article", "ix_lang"}


@INDEXED
def test_a_reflected_table_has_its_vector_index(backend: Backend, engine: AnyEngine):
    metadata = models(metric="l2", include=("lang",))
    backend.create_all(engine, metadata)
    vectors = make_vectors(20, 8)

    def check(connection: Connection) -> None:
        rows = [{"id": key, "lang": "en", "embedding": vector} for key, vector in vectors.items()]
        connection.execute(insert(metadata.tables["article"]), rows)
        reflected = MetaData()
        reflected.reflect(connection)
        assert set(reflected.tables) == {"article"}
        table = reflected.tables["article"]
        assert [index.name for index in table.indexes] == ["ix_article"]
        query = next(vector for vector in vectors.values() if vector is not None)
        stmt = nearest(table.select(), table.c.embedding, query, k=3, metric="l2")
        if backend.family == "sqlite":
            assert "FROM ix_article " in str(stmt.compile(connection))
        assert len(connection.execute(stmt).all()) == 3
        reflected.drop_all(connection)
        if backend.family == "sqlite":
            left = connection.execute(text("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")).all()
            assert left == []

    backend.run_connection(engine, check)


@pytest.mark.backends("psycopg", "asyncpg")
@pytest.mark.parametrize("dim", [8, 9])
def test_models_of_another_package_are_compared_as_by_alembic_alone(tmp_path, backend: Backend, dim: int):
    """The types and indexes of pgvector.sqlalchemy in the same metadata."""

    def declare(size: int, **with_: int) -> MetaData:
        metadata = MetaData()
        column = Column("embedding", pgvector.sqlalchemy.VECTOR(size))
        ops = {"embedding": "vector_l2_ops"}
        index = Index("ix_item", column, postgresql_using="hnsw", postgresql_ops=ops, postgresql_with=with_)
        Table("item", metadata, Column("id", Integer, primary_key=True), column, index)
        return metadata

    project = Project(tmp_path, backend)
    backend.run_connection(project.engine, lambda connection: connection.execute(text("CREATE EXTENSION vector")))
    backend.create_all(project.engine, declare(8))
    after = declare(dim, m=9)
    alone: list[Any] = []

    def compare(connection: Connection) -> None:
        script = produce_migrations(MigrationContext.configure(connection), after)
        assert script.upgrade_ops is not None
        alone.extend(script.upgrade_ops.as_diffs())

    without = Project(tmp_path / "alone", backend, engine=backend.make_engine(plugins=[]))
    without._connected(compare)
    assert repr(project.drift(after)) == repr(alone)


@INDEXED
def test_two_indexes_of_which_one_name_begins_with_the_other_are_kept_apart(tmp_path, backend: Backend):
    metadata = models(vector_index("ix_article_l2", "embedding", metric="l2"), metric="cosine")
    assert drift(tmp_path, backend, metadata, metadata) == []


@INDEXED
def test_a_plain_index_gives_way_to_a_vector_index_of_its_name(tmp_path, backend: Backend):
    before, after = models(Index("ix_article", "lang")), models(metric="l2")
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, before)
    for metadata in (after, before):
        project.revision(metadata)
        project.upgrade()
        assert project.drift(metadata) == []


@INDEXED
def test_a_change_of_dimension_and_an_index_over_new_columns_come_in_one_revision(tmp_path, backend: Backend):
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, models(metric="l2"))
    after = models(Column("rating", Integer), type_=HalfVector(16), metric="l2", include=("rating",))
    project.revision(after)
    project.upgrade()
    assert project.drift(after) == []
    project.downgrade()
    assert project.drift(models(metric="l2")) == []


@POSTGRESQL
def test_indexes_that_could_not_have_been_declared_are_left_to_alembic(tmp_path, backend: Backend):
    project = Project(tmp_path, backend)
    metadata = models()
    backend.create_all(project.engine, metadata)
    made = "CREATE INDEX {} ON article USING hnsw ({} vector_l2_ops)"

    def make(connection: Connection) -> None:
        connection.execute(text(made.format('"an odd-name"', "embedding")))
        connection.execute(text(made.format("of_a_part", "(subvector(embedding, 1, 4)\\:\\:vector(4))")))

    backend.run_connection(project.engine, make)
    found = project.drift(metadata)
    assert sorted((name, index.name) for name, index in found) == [
        ("remove_index", "an odd-name"),
        ("remove_index", "of_a_part"),
    ]
