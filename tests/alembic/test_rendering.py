"""What autogenerate writes into a migration."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import JSON, Column, Integer, LargeBinary, MetaData, String, Table, text

from sqla_vector import BitVector, HalfVector, SparseVector, Vector, vector_index
from tests.alembic.variations import Embedding, WrappedVector
from tests.support.backends import Backend
from tests.support.migrations import Project

ONE_OF_EACH = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")


def models(*items: Any) -> MetaData:
    metadata = MetaData()
    Table("article", metadata, Column("id", Integer, primary_key=True), Column("lang", String(8)), *items)
    return metadata


@ONE_OF_EACH
def test_types_are_written_with_their_import_within_create_table(tmp_path, backend: Backend):
    metadata = models(
        Column("a", Vector(3)),
        Column("b", HalfVector(3)),
        Column("c", SparseVector(3)),
        Column("d", BitVector(3)),
        Column("e", Vector()),
    )
    project = Project(tmp_path, backend)
    written = project.revision(metadata).read_text()
    assert written.count("import sqla_vector\n") == 1
    for expected in (
        "sa.Column('a', sqla_vector.Vector(dim=3), nullable=True)",
        "sa.Column('b', sqla_vector.HalfVector(dim=3), nullable=True)",
        "sa.Column('c', sqla_vector.SparseVector(dim=3), nullable=True)",
        "sa.Column('d', sqla_vector.BitVector(dim=3), nullable=True)",
        "sa.Column('e', sqla_vector.Vector(), nullable=True)",
    ):
        assert expected in written
    project.upgrade()
    assert project.drift(metadata) == []


@ONE_OF_EACH
def test_variants_and_own_types_are_written_with_their_imports(tmp_path, backend: Backend):
    metadata = models(
        Column("a", Vector(3).with_variant(LargeBinary(), "mysql")),
        Column("b", JSON().with_variant(Vector(3), "postgresql")),
        Column("c", Embedding(3)),
        Column("d", WrappedVector(3)),
    )
    project = Project(tmp_path, backend)
    written = project.revision(metadata).read_text()
    assert written.count("import tests.alembic.variations\n") == 1
    for expected in (
        "sqla_vector.Vector(dim=3).with_variant(sa.LargeBinary(), 'mysql')",
        ".with_variant(sqla_vector.Vector(dim=3), 'postgresql')",
        "tests.alembic.variations.Embedding(dim=3)",
        "tests.alembic.variations.WrappedVector(dim=3)",
    ):
        assert expected in written
    project.upgrade()
    assert project.drift(metadata) == []


@ONE_OF_EACH
def test_a_prefix_for_the_projects_types_needs_no_import(tmp_path, backend: Backend):
    project = Project(tmp_path, backend, user_module_prefix="types.")
    written = project.revision(models(Column("c", Embedding(3)))).read_text()
    assert "types.Embedding(dim=3)" in written
    assert "import tests" not in written


@ONE_OF_EACH
def test_prefixes_of_the_environment_are_used(tmp_path, backend: Backend):
    project = Project(tmp_path, backend, alembic_module_prefix="do.", sqlalchemy_module_prefix="alchemy.")
    template = project.directory / "script.py.mako"
    written_before = template.read_text()
    template.write_text(
        written_before.replace("import op", "import op as do").replace("sqlalchemy as sa", "sqlalchemy as alchemy")
    )
    metadata = models(Column("a", Vector(3)), vector_index("ix_article", "a", metric="l2"))
    written = project.revision(metadata).read_text()
    assert "do.create_vector_index(" in written
    assert "do.drop_vector_index('ix_article', 'article')" in written
    assert "alchemy.Column('id', alchemy.Integer(), nullable=False)" in written
    assert "op.create_vector" not in written.replace("do.", "")
    project.upgrade()
    assert project.drift(metadata) == []


@ONE_OF_EACH
def test_the_projects_own_render_item_is_asked_first(tmp_path, backend: Backend):
    def render(type_: str, object_: Any, autogen_context: Any) -> Any:
        if type_ == "type" and isinstance(object_, HalfVector):
            autogen_context.imports.add("from sqla_vector import HalfVector as Half")
            return f"Half({object_.dim})"
        return False

    project = Project(tmp_path, backend, render_item=render)
    metadata = models(Column("a", HalfVector(3)), Column("b", Vector(3)))
    written = project.revision(metadata).read_text()
    assert "sa.Column('a', Half(3), nullable=True)" in written
    assert "sa.Column('b', sqla_vector.Vector(dim=3), nullable=True)" in written
    project.upgrade()
    assert project.drift(metadata) == []


@ONE_OF_EACH
def test_an_index_is_written_once_with_the_options_that_are_not_the_defaults(tmp_path, backend: Backend):
    project = Project(tmp_path, backend)
    metadata = models(
        Column("a", Vector(3)),
        vector_index("ix_article", "a", metric="l2", m=16, ef_construction=70, include=("lang",), where=text("id > 1")),
    )
    written = project.revision(metadata).read_text()
    upgrade, _, downgrade = written.partition("def downgrade")
    assert upgrade.count("ix_article") == 1
    assert downgrade.count("ix_article") == 1
    for expected in ("metric='l2'", "include=['lang']", "m=16", "ef_construction=70", "where='id > 1'"):
        assert expected in upgrade
    for unexpected in ("precision", "method", "value_range", "lists", "partition_by"):
        assert unexpected not in upgrade


@ONE_OF_EACH
def test_text_in_a_predicate_comes_through_unchanged(tmp_path, backend: Backend):
    project = Project(tmp_path, backend)
    column = Column("title", String(80))
    predicate = column.like("50%_o'clock") & (column != 'a:b %(c)s \\ "d"')
    metadata = models(column, Column("a", Vector(3)), vector_index("ix_article", "a", where=predicate))
    project.revision(metadata)
    project.upgrade()
    assert project.drift(metadata) == []
    project.revision(models(Column("title", String(80)), Column("a", Vector(3))))
    project.upgrade()
    project.downgrade()
    assert project.drift(metadata) == []


@ONE_OF_EACH
def test_a_change_that_would_fail_is_never_an_alter_type(tmp_path, backend: Backend):
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, models(Column("a", Vector(3))))
    for type_, name in ((Vector(4), "Vector(dim=4)"), (BitVector(3), "BitVector(dim=3)"), (SparseVector(3), "Sparse")):
        written = project.revision(models(Column("a", type_))).read_text()
        assert "alter_column" not in written
        assert "op.change_vector_column(" in written
        assert f"type_=sqla_vector.{name}" in written
        assert "backfill=None" in written
        assert "# The vectors of article.a do not convert to the new type." in written
        project.versions.joinpath(f"{project._count:04}_change.py").unlink()
        project._count -= 1
