"""Models as users have them: odd names, schemas, inheritance, names that move, tables renamed by hand."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, Text, UniqueConstraint, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from sqla_vector import HalfVector, Vector, text_index, vector_index
from tests.support.backends import Backend
from tests.support.migrations import Project

ONE_OF_EACH = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
VEC0 = pytest.mark.backends("pysqlite3", "sqlite_stdlib")


def check_cycle(project: Project, metadata: MetaData) -> None:
    """Migrate to some models, back, and to them again; they never drift."""
    project.revision(metadata)
    for _ in range(2):
        project.upgrade()
        assert project.drift(metadata) == []
        project.downgrade()
    project.upgrade()


def names(differences: list[Any]) -> list[str]:
    return [difference[0] for difference in differences]


@ONE_OF_EACH
@pytest.mark.parametrize("name", ["Embedding", "my vec", "select", "vec-1", "ünï"])
@pytest.mark.parametrize("precision", ["full", "half", "binary"])
def test_a_column_may_have_any_name(tmp_path, backend: Backend, name: str, precision: Any):
    def declare(*indexes: Any) -> MetaData:
        metadata = MetaData()
        Table("item", metadata, Column("id", Integer, primary_key=True), Column(name, Vector(8)), *indexes)
        return metadata

    project = Project(tmp_path, backend)
    check_cycle(project, declare(vector_index("ix_item", name, precision=precision)))
    assert names(project.drift(declare())) == ["drop_vector_index"]


@ONE_OF_EACH
def test_keys_of_columns_may_differ_from_their_names(tmp_path, backend: Backend):
    def declare(dim: int, *indexes: Any) -> MetaData:
        metadata = MetaData()
        Table(
            "item",
            metadata,
            Column("ID", Integer, primary_key=True, key="id"),
            Column("Lang Code", String(4), key="lang"),
            Column("Emb", Vector(dim), key="embedding"),
            UniqueConstraint("lang", name="uq_item_lang"),
            *indexes,
        )
        return metadata

    project = Project(tmp_path, backend)
    check_cycle(project, declare(8, vector_index("ix_item", "embedding", include=("lang",))))
    check_cycle(project, declare(9, vector_index("ix_item", "embedding", partition_by="lang")))
    check_cycle(project, declare(9))


@pytest.mark.backends("psycopg", "asyncpg")
@pytest.mark.parametrize("precision", ["full", "half", "binary"])
def test_the_extension_may_be_in_a_schema_of_its_own(tmp_path, backend: Backend, precision: Any):
    def declare(type_: Any, *indexes: Any) -> MetaData:
        metadata = MetaData()
        Table("item", metadata, Column("id", Integer, primary_key=True), Column("embedding", type_), *indexes)
        return metadata

    engine = backend.make_engine(vector_schema="extensions")
    backend.run_connection(engine, lambda connection: connection.execute(text("CREATE SCHEMA extensions")))
    project = Project(tmp_path, backend, engine=engine)
    check_cycle(project, declare(Vector(8), vector_index("ix_item", "embedding", precision=precision)))
    assert names(project.drift(declare(Vector(8)))) == ["drop_vector_index"]
    check_cycle(project, declare(HalfVector(8), vector_index("ix_item", "embedding", precision=precision)))


@pytest.mark.backends("psycopg")
def test_the_default_schema_may_be_named(tmp_path, backend: Backend):
    metadata = MetaData(schema="public")
    Table(
        "item",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(8)),
        vector_index("ix_item", "embedding", where=text("id > 1")),
    )
    check_cycle(Project(tmp_path / "one", backend), metadata)
    assert Project(tmp_path / "all", backend, include_schemas=True).drift(metadata) == []


@VEC0
def test_a_table_whose_name_is_like_that_of_an_index_s_own_does_not_drift(tmp_path, backend: Backend):
    def declare(*names: str) -> MetaData:
        metadata = MetaData()
        Table(
            "item",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("body", Text),
            Column("embedding", Vector(8)),
            vector_index("item_vec", "embedding", metric="l2"),
            text_index("item_text", "body"),
        )
        for name in names:
            Table(name, metadata, Column("id", Integer, primary_key=True), Column("secret", Text))
        return metadata

    project = Project(tmp_path, backend)
    backend.create_all(project.engine, declare())
    both = declare("item_vec_keys", "item_text_keys")
    check_cycle(project, both)
    assert names(project.drift(declare())) == ["remove_table", "remove_table"]
    project.write("op.drop_vector_index('item_vec', 'item')\nop.drop_text_index('item_text', 'item')")
    project.upgrade()
    tables = [both.tables[name] for name in ("item_vec_keys", "item_text_keys")]
    found = [backend.run_connection(project.engine, lambda c, t=t: c.execute(t.select()).all()) for t in tables]
    assert found == [[], []]


@VEC0
@pytest.mark.parametrize("name", ["other", "the other", "other-db"])
def test_attached_databases_migrate_as_schemas(tmp_path, backend: Backend, name: str):
    engine = backend.make_engine()

    @event.listens_for(engine, "connect")
    def attach(dbapi_connection: Any, record: Any) -> None:
        dbapi_connection.execute(f"ATTACH '{tmp_path}/other.db' AS \"{name}\"")

    def declare(metric: str) -> MetaData:
        metadata = MetaData()
        for schema in (None, name):
            Table(
                "item",
                metadata,
                Column("id", Integer, primary_key=True),
                Column("lang", String(4)),
                Column("body", Text),
                Column("body_embedding", Vector(8)),
                Column("embedding", Vector(8)),
                vector_index("ix_item", "embedding", metric=metric if schema else "l1", include=("lang",)),
                vector_index("ix_item_lists", "body_embedding", metric="l2", method="ivfflat"),
                text_index("ix_item_text", "body"),
                schema=schema,
            )
        return metadata

    project = Project(tmp_path, backend, engine=engine, include_schemas=True)
    check_cycle(project, declare("cosine"))
    check_cycle(project, declare("l2"))


@ONE_OF_EACH
def test_classes_that_inherit_have_their_indexes(tmp_path, backend: Backend):
    class Base(DeclarativeBase):
        pass

    class Embedded:
        embedding: Mapped[Any] = mapped_column(Vector(8), nullable=True)

        @declared_attr.directive
        @classmethod
        def __table_args__(cls) -> Any:
            return (vector_index(f"ix_{cls.__tablename__}_embedding", "embedding", metric="l2"),)

    class Document(Embedded, Base):
        __tablename__ = "document"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

    class Picture(Document):
        __tablename__ = "picture"
        __table_args__ = (vector_index("ix_picture", "thumbnail_vector", metric="cosine"),)
        __mapper_args__ = {"polymorphic_identity": "picture"}
        id: Mapped[int] = mapped_column(ForeignKey("document.id"), primary_key=True)
        thumbnail: Mapped[Any] = mapped_column("thumbnail_vector", Vector(4), nullable=True)

    check_cycle(Project(tmp_path, backend), Base.metadata)


@ONE_OF_EACH
def test_a_table_and_a_column_renamed_by_hand_do_not_drift(tmp_path, backend: Backend):
    def declare(table: str, column: str, metric: str = "cosine") -> MetaData:
        metadata = MetaData()
        Table(
            table,
            metadata,
            Column("id", Integer, primary_key=True),
            Column("lang", String(4)),
            Column(column, Vector(8)),
            vector_index("ix_item", column, metric=metric, include=("lang",)),
        )
        return metadata

    project = Project(tmp_path, backend)
    backend.create_all(project.engine, declare("item", "embedding"))
    for statement, metadata in (
        ('ALTER TABLE item RENAME TO "New Item"', declare("New Item", "embedding")),
        ('ALTER TABLE "New Item" RENAME COLUMN embedding TO "my vec"', declare("New Item", "my vec")),
    ):
        backend.run_connection(project.engine, lambda connection, sql=statement: connection.execute(text(sql)))
        assert project.drift(metadata) == []
    check_cycle(project, declare("New Item", "my vec", "l2"))


@ONE_OF_EACH
def test_the_name_of_an_index_moves_to_another_table_or_column(tmp_path, backend: Backend):
    def declare(indexed_table: str, indexed_column: str) -> MetaData:
        metadata = MetaData()
        for table in ("first", "second"):
            Table(
                table,
                metadata,
                Column("id", Integer, primary_key=True),
                Column("a", Vector(8)),
                Column("b", Vector(8)),
                *([vector_index("ix_moving", indexed_column)] if table == indexed_table else []),
            )
        return metadata

    project = Project(tmp_path, backend)
    for table, column in (("first", "a"), ("second", "a"), ("first", "b"), ("first", "a")):
        check_cycle(project, declare(table, column))
