"""Outbox triggers in migrations: autogenerate, both ways, without drift, in batches and as scripts."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import InvalidIdentifier, InvalidOption, Vector, vector_index
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.tracking import outbox_table, outbox_triggers
from sqla_vector.types import support_of
from tests.alembic.test_offline import play
from tests.support.backends import Backend
from tests.support.migrations import Project
from tests.tracking.captured import entries, library, notes
from tests.tracking.test_captures import SETUP, WAYS, marked

BACKENDS = pytest.mark.backends("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "aiosqlite")
SCRIPTS = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
POSTGRESQL = pytest.mark.backends("psycopg", "asyncpg")
SQLITE = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")


def plain(base: Any) -> MetaData:
    """Return the models without their triggers."""
    copied: MetaData = base.metadata
    return _copy(copied)


def _copy(metadata: MetaData) -> MetaData:
    other = MetaData()
    for table in metadata.sorted_tables:
        table.to_metadata(other)
    return other


def run(project: Project, *statements: str) -> None:
    project.backend.run_connection(project.engine, lambda c: [c.exec_driver_sql(statement) for statement in statements])


def written(project: Project, base: Any, *statements: str) -> set[tuple[str, str, str]]:
    def work(connection: Connection) -> Any:
        entries(connection, base.outbox)
        for statement in statements:
            connection.exec_driver_sql(statement)
        return set(entries(connection, base.outbox))

    return project.backend.run_connection(project.engine, work)


def existing(project: Project, schema: str | None = None) -> dict[str, Any]:
    found = project.backend.run_connection(
        project.engine, lambda c: support_of(c.dialect).captures().reflect(c, schema)
    )
    return {one.table_name: one for one in found}


def assert_captures(project: Project, base: Any, ways: Any = WAYS) -> None:
    """Check that the triggers write what those of create_all() do."""
    outbox = base.outbox

    def work(connection: Connection) -> Any:
        wrong = {}
        for statement, keys in ways:
            with connection.begin_nested() as savepoint:
                connection.exec_driver_sql(statement)
                found = set(entries(connection, outbox))
                savepoint.rollback()
            if found != marked(*keys):
                wrong[statement] = found
        return wrong

    run(project, *SETUP)
    # Cascades aside, which SQLite does where it is told to.
    assert project.backend.run_connection(project.engine, lambda c: (entries(c, outbox), work(c))[1]) == {}


NO_CASCADES = [way for way in WAYS if not way[0].startswith(("DELETE FROM label WHERE", "UPDATE article SET id"))]


@BACKENDS
def test_models_become_a_migration_that_goes_both_ways(tmp_path: Path, backend: Backend):
    base, project = library(), Project(tmp_path, backend)
    written_down = project.revision(base.metadata).read_text()
    assert written_down.count("op.create_outbox_trigger(") == written_down.count("op.drop_outbox_trigger(") == 6
    upgrade = written_down.partition("def downgrade")[0]
    assert upgrade.index("op.create_outbox_trigger(") > upgrade.rindex("op.create_table(")
    downgrade = written_down.partition("def downgrade")[2]
    assert downgrade.rindex("op.drop_outbox_trigger(") < downgrade.index("op.drop_table(")
    project.upgrade()
    assert project.drift(base.metadata) == []
    assert_captures(project, base, NO_CASCADES)
    project.downgrade()
    assert existing(project) == {}
    project.upgrade()
    assert project.drift(base.metadata) == []


@BACKENDS
def test_triggers_are_added_to_tables_in_use_and_taken_away(tmp_path: Path, backend: Backend):
    base, project = library(), Project(tmp_path, backend)
    backend.create_all(project.engine, plain(base))
    assert {d[0] for d in project.drift(base.metadata)} == {"create_outbox_trigger"}
    project.revision(base.metadata)
    project.upgrade()
    assert project.drift(base.metadata) == []
    before = existing(project)
    project.revision(plain(base))
    project.upgrade()
    assert existing(project) == {}
    # The definitions came out of the database.
    project.downgrade()
    assert existing(project) == before
    assert project.drift(base.metadata) == []


def articles(source: Any = ("title",), **options: Any) -> Any:
    class Base(DeclarativeBase):
        outbox: Any

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        if "body" in source:
            body: Mapped[str | None]
        lang: Mapped[str | None]
        embedding: Mapped[np.ndarray | None] = embedding_column(Vector(2), source=source, embedder="e")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __table_args__ = (vector_index("ix_article", "embedding", metric="l2"),)

    Base.outbox = outbox_table(Base.metadata)
    outbox_triggers(Base, Base.outbox)
    return Base


@BACKENDS
def test_a_changed_definition_replaces_the_old_one(tmp_path: Path, backend: Backend):
    old, new, project = articles(), articles(("title", "lang")), Project(tmp_path, backend)
    backend.create_all(project.engine, old.metadata)
    assert [d[0] for d in project.drift(new.metadata)] == ["create_outbox_trigger"]
    script = project.revision(new.metadata).read_text()
    assert script.count("existing=") == script.count("op.create_outbox_trigger(") == 2
    project.upgrade()
    assert project.drift(new.metadata) == []
    change = ("INSERT INTO article (id, title) VALUES (1, 'x')", "DELETE FROM vector_outbox")
    assert written(project, new, *change, "UPDATE article SET lang = 'de'") == marked(1)
    project.downgrade()
    assert project.drift(old.metadata) == []
    assert written(project, new, "UPDATE article SET lang = 'en'") == set()


@BACKENDS
def test_a_new_source_column_and_its_trigger_come_in_one_migration(tmp_path: Path, backend: Backend):
    old, new, project = articles(), articles(("title", "body")), Project(tmp_path, backend)
    project.revision(old.metadata)
    project.upgrade()
    run(project, "INSERT INTO article (id, title) VALUES (1, 'x')")
    script = project.revision(new.metadata).read_text().partition("def downgrade")[0]
    assert script.index("drop_outbox_trigger") < script.index("add_column") < script.index("create_outbox_trigger")
    project.upgrade()
    assert project.drift(new.metadata) == []
    assert written(project, new, "UPDATE article SET body = 'x'") == marked(1)
    project.downgrade()
    assert project.drift(old.metadata) == []
    assert written(project, old, "UPDATE article SET title = 'y'") == marked(1)


@BACKENDS
def test_what_was_disabled_or_dropped_in_part_is_drift(tmp_path: Path, backend: Backend):
    base, project = articles(), Project(tmp_path, backend)
    project.revision(base.metadata)
    project.upgrade()
    if backend.family == "postgresql":
        run(project, "ALTER TABLE article DISABLE TRIGGER article_embedding_capture_0_insert")
    else:
        run(project, "DROP TRIGGER article_embedding_capture_insert")
    assert [d[0] for d in project.drift(base.metadata)] == ["create_outbox_trigger"]
    project.revision(base.metadata)
    project.upgrade()
    assert project.drift(base.metadata) == []


@BACKENDS
def test_a_definition_of_another_version_is_replaced(tmp_path: Path, backend: Backend):
    base, project = articles(), Project(tmp_path, backend)
    project.revision(base.metadata)
    project.upgrade()
    label = "sqla_vector outbox trigger article_embedding_capture 0123 {}"
    if backend.family == "postgresql":
        run(project, f"COMMENT ON FUNCTION article_embedding_capture() IS '{label}'")
    else:
        for name, sql in backend.run_connection(
            project.engine,
            lambda c: [
                tuple(r) for r in c.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql LIKE '%/* s%'")
            ],
        ):
            run(project, f"DROP TRIGGER {name}", re.sub(r"/\* .* \*/", f"/* {label} */", sql))
    assert [d[0] for d in project.drift(base.metadata)] == ["drop_outbox_trigger", "create_outbox_trigger"]
    project.revision(base.metadata)
    project.upgrade()
    assert project.drift(base.metadata) == []
    project.downgrade()
    assert existing(project) == {}


@BACKENDS
def test_names_that_the_environment_leaves_out_are_left_alone(tmp_path: Path, backend: Backend):
    base = articles()
    project = Project(tmp_path, backend, include_name=lambda name, type_, parent: name not in ("article",))
    backend.create_all(project.engine, base.metadata)
    assert "drop_outbox_trigger" not in {d[0] for d in project.drift(MetaData())}
    other = Project(tmp_path / "other", backend, include_object=lambda o, name, *rest: name != "article")
    assert other.drift(base.metadata) == []


@POSTGRESQL
@pytest.mark.parametrize("schema", ["public", "Shop"])
def test_schemas_are_compared(tmp_path: Path, backend: Backend, schema):
    base, project = library(schema=schema), Project(tmp_path, backend, include_schemas=schema != "public")
    run(project, f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    if schema == "public":
        backend.create_all(project.engine, base.metadata)
    else:
        project.revision(base.metadata)
        project.upgrade()
    assert [d for d in project.drift(base.metadata) if "trigger" in str(d[0])] == []
    assert len(existing(project, schema)) == 6


@SCRIPTS
def test_a_script_does_what_a_connection_does(tmp_path: Path, backend: Backend):
    base, project = library(), Project(tmp_path, backend)
    project.revision(base.metadata)
    run(project, "DROP TABLE IF EXISTS alembic_version")
    play(project, project.sql("upgrade", "base:head"))
    assert project.drift(base.metadata) == []
    assert_captures(project, base, NO_CASCADES)
    play(project, project.sql("downgrade", "0001:base"))
    assert existing(project) == {}


@SCRIPTS
def test_names_may_be_odd_in_scripts_too(tmp_path: Path, backend: Backend):
    names = {"article": "My Articles", "author": "select", "tag": "täg $x$"}
    base, project = library(names=names), Project(tmp_path, backend)
    project.revision(base.metadata)
    run(project, "DROP TABLE IF EXISTS alembic_version")
    play(project, project.sql("upgrade", "base:head"))
    assert project.drift(base.metadata) == []
    found = written(project, base, """INSERT INTO "My Articles" (id, headline) VALUES (1, 'x')""")
    assert found == {("My Articles", "[1]", "upsert")}


BATCHES = {
    "article": "with op.batch_alter_table('article', recreate='always') as batch:\n"
    "    batch.alter_column('slug', type_=sa.Text())",
    "author": "with op.batch_alter_table('author', recreate='always') as batch:\n"
    "    batch.add_column(sa.Column('died', sa.Integer()))",
    "tag": "with op.batch_alter_table('tag', recreate='always') as batch:\n    batch.drop_column('color')",
    "labelled": "with op.batch_alter_table('labelled', recreate='always') as batch:\n    pass",
}


@SQLITE
@pytest.mark.parametrize("table", BATCHES)
def test_triggers_survive_a_batch(tmp_path: Path, backend: Backend, table):
    base, project = library(), Project(tmp_path, backend)
    project.revision(base.metadata)
    project.upgrade()
    before = existing(project)
    project.write(BATCHES[table])
    project.upgrade()
    assert existing(project) == before
    ways = [way for way in NO_CASCADES if "color" not in way[0]]
    assert_captures(project, base, ways)


@SQLITE
def test_a_batch_that_drops_a_watched_column_leaves_statements_working(tmp_path: Path, backend: Backend, caplog):
    base, project = library(), Project(tmp_path, backend)
    project.revision(base.metadata)
    project.upgrade()
    run(project, *SETUP)
    project.write(
        "with op.batch_alter_table('article', recreate='always') as batch:\n    batch.drop_column('headline')"
    )
    project.upgrade()
    assert "article_embedding_capture, the outbox trigger of article, names a column that is gone" in caplog.text
    run(project, "UPDATE article SET views = 1")
    # Those of other tables know nothing of the column.
    assert written(project, base, "UPDATE author SET name = 'n' WHERE id = 1") == marked(1, 2)
    assert written(project, base, "UPDATE tag SET word = 'n' WHERE id = 1") == marked(1)
    project.write(
        "with op.batch_alter_table('article', recreate='always') as batch:\n"
        "    batch.drop_index('ix_article_author_id')\n    batch.drop_column('author_id')"
    )
    project.upgrade()
    assert "author_embedding_capture, the outbox trigger of author" in caplog.text
    assert written(project, base, "UPDATE author SET name = 'm'") == set()


@SQLITE
def test_a_batch_that_fails_leaves_the_triggers_as_they_were(tmp_path: Path, backend: Backend):
    base, project = library(), Project(tmp_path, backend)
    project.revision(base.metadata)
    project.upgrade()
    run(project, *SETUP)
    before = existing(project)
    project.write(
        "with op.batch_alter_table('article', recreate='always') as batch:\n"
        "    batch.alter_column('author_id', nullable=False)\n"
    )
    run(project, "UPDATE article SET author_id = NULL")
    with pytest.raises(Exception, match="NOT NULL"):
        project.upgrade()
    assert existing(project) == before


@BACKENDS
def test_a_table_that_is_renamed_keeps_its_triggers_until_autogenerate_replaces_them(tmp_path: Path, backend: Backend):
    old, new = library(), library(names={"tag": "keyword"})
    project = Project(tmp_path, backend)
    project.revision(old.metadata)
    project.upgrade()
    run(project, *SETUP)
    project.write("op.rename_table('tag', 'keyword')", "op.rename_table('keyword', 'tag')")
    project.upgrade()
    assert written(project, old, "UPDATE keyword SET word = 'n' WHERE id = 1") == marked(1)
    drift = [d for d in project.drift(new.metadata) if "trigger" in str(d[0])]
    assert sorted(d[0] for d in drift) == ["create_outbox_trigger", "drop_outbox_trigger"]
    project.revision(new.metadata)
    project.upgrade()
    assert [d for d in project.drift(new.metadata) if "trigger" in str(d[0])] == []
    assert written(project, old, "UPDATE keyword SET word = 'm' WHERE id = 1") == marked(1)
    project.downgrade()
    assert written(project, old, "UPDATE keyword SET word = 'o' WHERE id = 1") == marked(1)
    # Created by the name that the table had then, they go along again.
    project.downgrade()
    assert written(project, old, "UPDATE tag SET word = 'p' WHERE id = 1") == marked(1)


@BACKENDS
def test_a_renamed_column_is_still_watched(tmp_path: Path, backend: Backend):
    base, project = library(), Project(tmp_path, backend)
    project.revision(base.metadata)
    project.upgrade()
    run(project, *SETUP)
    project.write("op.execute('ALTER TABLE article RENAME COLUMN headline TO title')")
    project.upgrade()
    assert written(project, base, "UPDATE article SET title = 'n' WHERE id = 1") == marked(1)


@BACKENDS
def test_a_table_that_goes_takes_its_triggers_along(tmp_path: Path, backend: Backend):
    old, new, project = notes(), articles(), Project(tmp_path, backend)
    project.revision(old.metadata)
    project.upgrade()
    script = project.revision(new.metadata).read_text().partition("def downgrade")[0]
    assert script.index("drop_outbox_trigger") < script.index("drop_table") < script.index("create_outbox_trigger")
    project.upgrade()
    assert set(existing(project)) == {"article"}
    project.downgrade()
    assert project.drift(old.metadata) == []


MARK: dict[str, Any] = {"entity": "article", "key": {"id": "integer"}, "watched": ["title"]}
BAD: list[tuple[dict[str, Any], str]] = [
    *(
        ({"table_name": name}, "is no name")
        for name in ('a"b', "a;DROP TABLE x", "", "a\nb", "a\0", "%s", ":p", "a.b", "ä" * 32)
    ),
    ({"outbox": "a'b"}, "is no name"),
    ({"schema": "a.b"}, "is no name"),
    ({"outbox_schema": ""}, "is no name"),
    ({"channel": "it's"}, "is no name"),
    ({"marks": []}, "marks no rows"),
    ({"marks": [{**MARK, "entity": ""}]}, "an entity is the name of a table"),
    ({"marks": [{**MARK, "entity": "a'; --"}]}, "is no name"),
    ({"marks": [{**MARK, "key": {"id": "int"}}]}, "a column of a key is one of"),
    ({"marks": [{**MARK, "key": {}}]}, "needs its key"),
    ({"marks": [{**MARK, "watched": []}]}, "needs its key"),
    ({"marks": [{**MARK, "watched": ['a"']}]}, "is no name"),
    ({"marks": [{**MARK, "fingerprint": "a b'"}]}, "is no name"),
    ({"marks": [{**MARK, "unknown": 1}]}, "is no definition of an outbox trigger"),
    ({"marks": [{**MARK, "path": [{"table": "t"}]}]}, "is no definition of an outbox trigger"),
    ({"marks": [{**MARK, "path": [{"table": "t", "on": []}]}]}, "joins by at least one pair"),
    ({"marks": [{**MARK, "path": [{"table": "t", "on": {"a": "b"}}], "fingerprint": "f"}]}, "has a path"),
    ({"marks": 3}, "is no definition of an outbox trigger"),
    ({"unique": [["a'"]]}, "is no name"),
    ({"deletes": 1}, "deletes must be True or False"),
    ({"existing": {"table_name": "t"}}, "is no definition of an outbox trigger"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[f"{n}" for n in range(len(BAD))])
def test_what_is_no_definition_is_refused_before_anything_is_run(changed, message):
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    op = Operations(MigrationContext.configure(dialect_name="sqlite", opts={"as_sql": True}))
    given = {"table_name": "article", "outbox": "vector_outbox", "marks": [MARK], **changed}
    with pytest.raises((InvalidIdentifier, InvalidOption), match=message):
        op.create_outbox_trigger(given.pop("table_name"), **given)


@pytest.mark.parametrize("name", ['a"b', "", "a;b", "a.b"])
def test_a_bad_name_is_not_dropped(name):
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    op = Operations(MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True}))
    for given in ({"table_name": name}, {"table_name": "t", "schema": name}, {"table_name": "t", "name": name}):
        with pytest.raises(InvalidIdentifier):
            op.drop_outbox_trigger(**given)


@BACKENDS
def test_deletes_are_entries_where_they_are_asked_for(tmp_path: Path, backend: Backend):
    base, project = articles(), Project(tmp_path, backend)
    backend.create_all(project.engine, plain(base))
    unique = "CREATE UNIQUE INDEX one_each ON article (lang)"
    project.write(
        "op.create_outbox_trigger('article', outbox='vector_outbox', channel='search', deletes=True, "
        "unique=[['id'], ['lang']], marks=["
        "{'entity': 'article', 'key': {'id': 'integer'}, 'watched': ['title', 'embedding_fingerprint']}])",
        "op.drop_outbox_trigger('article', channel='search')",
    )
    project.upgrade()
    run(project, unique)
    insert = "INSERT INTO article (id, title, lang) VALUES (1, 'x', 'de'), (2, 'x', 'en')"
    assert written(project, base, insert) == marked(1, 2)
    assert written(project, base, "DELETE FROM article WHERE id = 1") == {("article", "[1]", "delete")}
    moved = {("article", "[3]", "upsert"), ("article", "[2]", "delete")}
    assert written(project, base, "UPDATE article SET id = 3, title = 'y'") == moved
    assert written(project, base, "UPDATE article SET id = 2") == {("article", "[3]", "delete")}
    if backend.family == "postgresql":
        assert written(project, base, "TRUNCATE article") == {("article", "[]", "truncate")}
    else:
        # Row 2 goes without a trigger being told.
        replace = "INSERT OR REPLACE INTO article (id, title, lang) VALUES (9, 'z', 'en')"
        assert written(project, base, replace) == marked(2, 9)
    channel = backend.run_connection(
        project.engine,
        lambda c: (
            c.exec_driver_sql("INSERT INTO article (id) VALUES (20)"),
            c.scalar(text("SELECT channel FROM vector_outbox")),
        )[1],
    )
    assert channel == "search"
    project.downgrade()
    assert existing(project) == {}
