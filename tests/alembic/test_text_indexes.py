"""Text indexes in migrations: found, written, reversed, kept by what changes their table, and without drift."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    inspect,
    select,
    text,
)

from sqla_vector import InvalidIdentifier, InvalidOption, MigrationError, Vector, match_text, text_index, vector_index
from sqla_vector.alembic.ops import CreateTextIndexOp, DropTextIndexOp, RebuildTextIndexOp
from sqla_vector.alembic.text_definition import TextIndexDefinition
from sqla_vector.text_index import text_indexes
from tests.alembic.test_offline import play
from tests.support.migrations import Project

BOTH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite", "sqlite_stdlib")
ONE_OF_EACH = pytest.mark.backends("psycopg", "pysqlite3")
SQLITE = pytest.mark.backends("pysqlite3", "sqlite_stdlib")
POSTGRESQL = pytest.mark.backends("psycopg", "asyncpg")


def models(*names: str, key: Any = Integer, more: Any = (), body: Any = Text, **options: Any) -> MetaData:
    """Return models with one table and, if there are names, a text index on these columns."""
    metadata = MetaData()
    Table(
        "article",
        metadata,
        Column("id", key, primary_key=True),
        Column("title", String(50)),
        Column("body", body),
        Column("my note", String(50)),
        *more,
        *([text_index("ix_article_text", *names, **options)] if names else []),
    )
    return metadata


def names(differences: list[Any]) -> list[str]:
    return [difference[0] for difference in differences]


def migrate(project: Project, metadata: MetaData) -> str:
    """Write a revision and apply it; return what was written."""
    written = project.revision(metadata).read_text()
    project.upgrade()
    assert project.drift(metadata) == []
    return written


def fill(connection: Connection, metadata: MetaData) -> None:
    connection.execute(
        insert(metadata.tables["article"]),
        [
            {"id": 1, "title": "Red fox", "body": "jumps", "my note": "a"},
            {"id": 2, "title": "Hen", "body": "the red hen", "my note": "zebra"},
        ],
    )


def found(project: Project, metadata: MetaData, query: str = "red") -> list[int]:
    table = metadata.tables["article"]
    stmt = match_text(select(table.c.id), table, query)
    return sorted(project.backend.run_connection(project.engine, lambda c: c.scalars(stmt).all()))


@BOTH
def test_an_index_comes_changes_and_goes_and_each_step_can_be_undone(tmp_path, backend):
    project = Project(tmp_path, backend)
    plain, on_title, on_both = models(), models("title"), models("body", "title", weights=(0.5, 1), language="english")
    migrate(project, plain)
    backend.run_connection(project.engine, lambda c: fill(c, plain))
    written = migrate(project, on_title)
    assert "op.create_text_index(" in written
    assert "import sqla_vector.alembic" in written
    assert "op.drop_text_index('ix_article_text', 'article')" in written
    assert found(project, on_title) == [1]
    written = migrate(project, on_both)
    assert "op.rebuild_text_index(" in written
    assert "existing={'columns': ['title']}" in written
    assert found(project, on_both, "jumping or reds") == [1, 2]
    migrate(project, plain)
    assert not backend.run_connection(project.engine, lambda c: inspect(c).has_index("article", "ix_article_text"))
    for metadata, query, expected in ((on_both, "jumping or reds", [1, 2]), (on_title, "red", [1])):
        project.downgrade()
        assert project.drift(metadata) == []
        assert found(project, metadata, query) == expected
    project.downgrade()
    assert project.drift(plain) == []
    project.downgrade()
    assert backend.run_connection(project.engine, lambda c: inspect(c).get_table_names()) == ["alembic_version"]
    project.upgrade()
    assert project.drift(plain) == []


@BOTH
def test_a_new_table_comes_with_its_index_and_goes_with_it(tmp_path, backend):
    project = Project(tmp_path, backend)
    metadata = models("title", "my note", weights=(1, 0.2))
    Table(
        "tag",
        metadata,
        Column("slug", String(20), primary_key=True),
        Column("line", Text, unique=True),
        Column("embedding", Vector(3)),
        text_index("ix_tag_line", "line", language="english"),
        vector_index("ix_tag_embedding", "embedding"),
    )
    migrate(project, metadata)
    backend.run_connection(project.engine, lambda c: fill(c, metadata))
    assert found(project, metadata, "zebra") == [2]
    migrate(project, models())
    project.downgrade()
    assert project.drift(metadata) == []
    project.downgrade()
    assert backend.run_connection(project.engine, lambda c: inspect(c).get_table_names()) == ["alembic_version"]


BEFORE: dict[str, Any] = {"weights": (1, 0.5), "language": "simple"}


@ONE_OF_EACH
@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        (("title", "body"), BEFORE, []),
        # What the index has of the weights is their order.
        (("title", "body"), {"weights": (0.9, 0.3)}, []),
        (("title", "body"), {"weights": (0.5, 1)}, ["rebuild_text_index"]),
        (("title", "body"), {}, ["rebuild_text_index"]),
        (("title", "body"), BEFORE | {"language": "english"}, ["rebuild_text_index"]),
        (("title", "my note"), BEFORE, ["rebuild_text_index"]),
        (("body", "title"), BEFORE, ["rebuild_text_index"]),
        (("title", "body", "my note"), {"weights": (1, 0.5, 0.5)}, ["rebuild_text_index"]),
        (("title",), {}, ["rebuild_text_index"]),
        ((), {}, ["drop_text_index"]),
    ],
    ids=["same", "numbers", "order", "none", "language", "column", "swapped", "more", "fewer", "gone"],
)
def test_every_difference_is_found(tmp_path, backend, columns, options, expected):
    project = Project(tmp_path, backend)
    before = models("title", "body", **BEFORE)
    backend.create_all(project.engine, before)
    assert project.drift(before) == []
    assert names(project.drift(models(*columns, **options))) == expected


@ONE_OF_EACH
def test_models_made_by_create_all_have_no_drift(tmp_path, backend):
    project = Project(tmp_path, backend)
    odd = MetaData()
    Table(
        'Odd "table"' if backend.family == "postgresql" else "Odd table",
        odd,
        Column("Id", String(9), primary_key=True, key="identity"),
        Column("The Title", Text, key="title"),
        Column("select", String(9)),
        text_index("IX_Odd", "title", "select", weights=(0.25, 1)),
    )
    for metadata in (
        models("title", "body", "my note", weights=(1, 0.1, 0.5)),
        models("title", key=String(8), language="english", more=[UniqueConstraint("title", "body")]),
        models("body", body=String(7)),
        odd,
    ):
        backend.create_all(project.engine, metadata)
        assert project.drift(metadata) == []
        ((index, key),) = text_indexes(next(iter(metadata.tables.values())))
        # The declarations are as they were.
        assert index.table.indexes == {index}
        assert all(column.table is index.table for column in key.columns)
        backend.drop_all(project.engine, metadata)


@POSTGRESQL
def test_languages_of_postgresql_have_no_drift(tmp_path, backend):
    project = Project(tmp_path, backend)
    create = "CREATE SCHEMA words; CREATE TEXT SEARCH CONFIGURATION words.plain (COPY = pg_catalog.simple)"
    for statement in create.split("; "):
        backend.run_connection(project.engine, lambda c, sql=statement: c.exec_driver_sql(sql))
    for language in ("german", "words.plain", "pg_catalog.french"):
        metadata = models("title", language=language)
        backend.create_all(project.engine, metadata)
        assert project.drift(metadata) == []
        assert names(project.drift(models("title", language="words.other"))) == ["rebuild_text_index"]
        backend.drop_all(project.engine, metadata)


@BOTH
def test_a_column_may_change_its_type_under_the_index(tmp_path, backend):
    project = Project(tmp_path, backend)
    before, after = models("title", "body", body=String(40)), models("title", "body", body=Text)
    migrate(project, before)
    backend.run_connection(project.engine, lambda c: fill(c, before))
    assert "text_index" not in migrate(project, after)
    assert found(project, after) == [1, 2]
    backend.run_connection(project.engine, lambda c: _search_uses_the_index(c, after))
    project.downgrade()
    assert project.drift(before) == []
    assert found(project, before) == [1, 2]


def _search_uses_the_index(connection: Connection, metadata: MetaData) -> None:
    if connection.dialect.name != "postgresql":
        return
    table = metadata.tables["article"]
    number = func.generate_series(100, 5_000).column_valued("number")
    rows = select(number, func.concat("w", number), func.concat("v", number))
    connection.execute(insert(table).from_select(["id", "title", "body"], rows))
    connection.exec_driver_sql("ANALYZE article")
    stmt = match_text(select(table.c.id), table, "w777")
    compiled = stmt.compile(connection, compile_kwargs={"literal_binds": True})
    plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {compiled}").scalars())
    assert "ix_article_text" in plan
    connection.execute(table.delete().where(table.c.id >= 100))


@BOTH
def test_the_columns_of_an_index_come_and_go_with_it(tmp_path, backend):
    project = Project(tmp_path, backend)
    before = models("title", "body")
    after = MetaData()
    Table(
        "article",
        after,
        Column("id", Integer, primary_key=True),
        Column("body", Text),
        Column("my note", String(50)),
        Column("summary", Text),
        text_index("ix_article_text", "body", "summary"),
    )
    migrate(project, before)
    backend.run_connection(project.engine, lambda c: fill(c, before))
    migrate(project, after)
    assert found(project, after) == [2]
    project.downgrade()
    assert project.drift(before) == []
    assert found(project, before) == [2]


@SQLITE
def test_a_batch_keeps_the_index(tmp_path, backend):
    project = Project(tmp_path, backend)
    for key in (Integer, String(8)):
        before = models("title", "body", weights=(1, 0.5), language="english", key=key)
        after = models("title", "body", weights=(1, 0.5), language="english", key=key, more=[Column("year", Integer)])
        backend.create_all(project.engine, before)
        backend.run_connection(
            project.engine,
            lambda c, table=before.tables["article"]: c.execute(insert(table), [{"id": "7", "title": "Red foxes"}]),
        )
        project.write(
            "with op.batch_alter_table('article', recreate='always') as batch:\n"
            "    batch.add_column(sa.Column('year', sa.Integer))\n"
            "    batch.alter_column('title', type_=sa.String(99))"
        )
        project.upgrade()
        changed = after.tables["article"]
        changed.c.title.type = String(99)
        assert project.drift(after) == []
        assert [str(key) for key in found(project, after, "fox")] == ["7"]
        backend.run_connection(
            project.engine, lambda c, table=changed: c.execute(insert(table), [{"id": "8", "body": "a red hen"}])
        )
        assert [str(key) for key in found(project, after)] == ["7", "8"]
        backend.drop_all(project.engine, after)


@SQLITE
def test_renames_keep_the_index_and_show_no_drift(tmp_path, backend):
    project = Project(tmp_path, backend)
    before = models("title", "body", more=[UniqueConstraint("my note"), UniqueConstraint("id", "title")])
    backend.create_all(project.engine, before)
    backend.run_connection(project.engine, lambda c: fill(c, before))
    project.write(
        "op.rename_table('article', 'news')\nop.execute('ALTER TABLE news RENAME COLUMN title TO headline')\n"
        "with op.batch_alter_table('news', recreate='always') as batch:\n"
        "    batch.alter_column('body', new_column_name='text')\n"
        'op.execute(\'ALTER TABLE news RENAME COLUMN "my note" TO "a note"\')'
    )
    project.upgrade()
    after = MetaData()
    table = Table(
        "news",
        after,
        Column("id", Integer, primary_key=True),
        Column("headline", String(50)),
        Column("text", Text),
        Column("a note", String(50), unique=True),
        UniqueConstraint("id", "headline"),
        text_index("ix_article_text", "headline", "text"),
    )
    assert project.drift(after) == []
    stmt = match_text(select(table.c.id), table, "red")
    assert sorted(backend.run_connection(project.engine, lambda c: c.scalars(stmt).all())) == [1, 2]


@SQLITE
def test_a_batch_that_drops_a_column_drops_the_index_on_it(tmp_path, backend):
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, models("title", "body"))
    project.write("with op.batch_alter_table('article', recreate='always') as batch:\n    batch.drop_column('title')")
    project.upgrade()
    left = backend.run_connection(project.engine, lambda c: c.exec_driver_sql("SELECT name FROM sqlite_master").all())
    assert not [name for (name,) in left if name.startswith("ix_article_text")]


@POSTGRESQL
def test_an_index_is_built_and_dropped_concurrently_and_an_interrupted_build_is_repeated(tmp_path, backend):
    project = Project(tmp_path, backend)
    metadata = models("title", "body")
    backend.create_all(project.engine, models())
    backend.run_connection(project.engine, lambda c: fill(c, metadata))
    create = (
        "op.create_text_index('ix_article_text', 'article', ['title', 'body'], concurrently=True, "
        "maintenance_work_mem='64MB')"
    )
    project.write(create, "op.drop_text_index('ix_article_text', 'article', concurrently=True)")
    project.upgrade()
    assert project.drift(metadata) == []
    project.downgrade()
    assert names(project.drift(metadata)) == ["create_text_index"]
    # As an interrupted build leaves it.
    backend.create_all(project.engine, metadata)
    backend.run_connection(project.engine, lambda c: [index.create(c) for index in metadata.tables["article"].indexes])
    broken = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_article_text'::regclass"
    backend.run_connection(project.engine, lambda c: c.exec_driver_sql(broken))
    assert names(project.drift(metadata)) == ["rebuild_text_index"]
    project.upgrade()
    assert project.drift(metadata) == []
    assert found(project, metadata) == [1, 2]


@BOTH
def test_if_not_exists_takes_the_same_index_and_no_other(tmp_path, backend):
    project = Project(tmp_path, backend)
    metadata = models("title", "body")
    backend.create_all(project.engine, metadata)
    project.write("op.create_text_index('ix_article_text', 'article', ['title', 'body'], if_not_exists=True)")
    project.upgrade()
    assert project.drift(metadata) == []
    project.write("op.create_text_index('ix_article_text', 'article', ['title'], if_not_exists=True)")
    with pytest.raises(MigrationError, match="there is another index ix_article_text already, which differs"):
        project.upgrade()


@BOTH
def test_operations_refuse_what_is_not_there(tmp_path, backend):
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, models())

    def refused(upgrade: str) -> Any:
        path = project.write(upgrade)
        try:
            project.upgrade()
        finally:
            path.unlink()
            project._count -= 1

    with pytest.raises(MigrationError, match="ix_t: article has no column nothing"):
        refused("op.create_text_index('ix_t', 'article', ['nothing'])")
    with pytest.raises(MigrationError, match="there is no table nowhere"):
        refused("op.create_text_index('ix_t', 'nowhere', ['title'])")
    with pytest.raises(InvalidOption, match="is no text column"):
        refused("op.create_text_index('ix_t', 'article', ['id'])")
    with pytest.raises(Exception, match="ix_t"):
        refused("op.drop_text_index('ix_t', 'article')")
    with pytest.raises(InvalidOption, match="existing has method; there are columns, language, weights"):
        refused("op.rebuild_text_index('ix_t', 'article', ['title'], existing={'method': 'gin'})")
    project.write("op.drop_text_index('ix_t', 'article', if_exists=True)")
    project.upgrade()


@pytest.mark.parametrize("bad", ["a;b", "a b", "", "x" * 64, "a\0", None, 3, "select"])
def test_names_are_checked(bad):
    with pytest.raises(InvalidIdentifier):
        TextIndexDefinition(bad, "article", ("title",))
    with pytest.raises(InvalidIdentifier):
        DropTextIndexOp(bad, "article")


@pytest.mark.parametrize("bad", ['a"b', "a;b", "", "x" * 64, "a\0", None, 3, "a.b"])
def test_names_of_tables_columns_and_schemas_are_checked(bad):
    for arguments in (("ix", bad, ("title",)), ("ix", "article", (bad,))):
        with pytest.raises(InvalidOption):
            TextIndexDefinition(*arguments)
    if bad is not None:
        with pytest.raises(InvalidOption):
            TextIndexDefinition("ix", "article", ("title",), schema=bad)


def test_operations_are_data_that_can_be_reversed():
    title = TextIndexDefinition("ix", "article", ("title",))
    both = TextIndexDefinition("ix", "article", ("title", "body"), (1.0, 0.5), "english", "shop")
    created = CreateTextIndexOp(both)
    assert created.to_diff_tuple() == (
        "create_text_index",
        "ix",
        "article",
        ("title", "body"),
        {"weights": [1.0, 0.5], "language": "english"},
    )
    dropped = created.reverse()
    assert dropped.to_diff_tuple() == ("drop_text_index", "ix", "article")
    assert dropped.schema == "shop"
    assert dropped.reverse().definition == both
    rebuilt = RebuildTextIndexOp(both, title)
    assert rebuilt.to_diff_tuple()[2:] == ((("title",), {}), (("title", "body"), both.written()))
    assert rebuilt.reverse().definition == title
    assert rebuilt.reverse().reverse().definition == both
    assert RebuildTextIndexOp(both).reverse().definition == both
    with pytest.raises(MigrationError, match="ix cannot be built again"):
        DropTextIndexOp("ix", "article").reverse()


@pytest.mark.backends("psycopg")
def test_an_index_in_another_schema(tmp_path, backend):
    project = Project(tmp_path, backend, include_schemas=True)
    backend.run_connection(project.engine, lambda c: c.exec_driver_sql('CREATE SCHEMA "my shop"'))
    metadata = MetaData()
    Table(
        "article",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("title", Text),
        text_index("ix_article_text", "title"),
        schema="my shop",
    )
    assert "schema='my shop'" in migrate(project, metadata)
    project.downgrade()
    project.upgrade()
    assert project.drift(metadata) == []


@ONE_OF_EACH
def test_filters_of_the_project_are_asked(tmp_path, backend):
    seen = []

    def include(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
        seen.append((type_, name, reflected))
        return name != "ix_article_text"

    project = Project(tmp_path, backend, include_object=include)
    backend.create_all(project.engine, models())
    assert project.drift(models("title")) == []
    backend.create_all(project.engine, MetaData())
    backend.run_connection(
        project.engine, lambda c: [index.create(c) for index in models("title").tables["article"].indexes]
    )
    assert project.drift(models()) == []
    assert project.drift(models("body")) == []
    assert ("index", "ix_article_text", True) in seen
    assert ("index", "ix_article_text", False) in seen


@ONE_OF_EACH
def test_reflected_models_have_no_drift(tmp_path, backend):
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, models("title", "body", weights=(1, 0.4)))
    reflected = MetaData()
    backend.run_connection(project.engine, lambda c: reflected.reflect(c))
    assert [index.name for index in reflected.tables["article"].indexes] == ["ix_article_text"]
    assert project.drift(reflected) == []


@POSTGRESQL
def test_gin_indexes_of_others_are_left_alone(tmp_path, backend):
    project = Project(tmp_path, backend)
    metadata = models()
    backend.create_all(project.engine, metadata)
    table = metadata.tables["article"]
    theirs = Index("ix_theirs", func.to_tsvector(text("'simple'"), table.c.title), postgresql_using="gin")
    backend.run_connection(project.engine, theirs.create)
    assert project.drift(metadata) == []
    table.indexes.clear()
    # An index of theirs under the name of one of ours is Alembic's to drop.
    assert names(project.drift(models())) == ["remove_index"]
    backend.run_connection(project.engine, lambda c: c.exec_driver_sql("DROP INDEX ix_theirs"))
    ours = models("title")
    backend.run_connection(project.engine, lambda c: [i.create(c) for i in ours.tables["article"].indexes])
    backend.run_connection(
        project.engine, lambda c: c.exec_driver_sql('ALTER INDEX ix_article_text RENAME TO "my index"')
    )
    # One of ours in form, under a name that cannot be declared, is somebody's own.
    assert sorted(names(project.drift(ours))) == ["create_text_index", "remove_index"]


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_script_does_what_a_connection_does(tmp_path, backend):
    project = Project(tmp_path, backend)
    plain, first, second = models(), models("title"), models("title", "body", weights=(1, 0.5))
    for metadata in (plain, first, second):
        project.revision(metadata)
        project.upgrade()
    script = project.sql("upgrade", "head")
    project.downgrade("base")
    backend.run_connection(project.engine, lambda c: c.exec_driver_sql("DROP TABLE alembic_version"))
    play(project, script)
    assert project.drift(second) == []
    backend.run_connection(project.engine, lambda c: fill(c, second))
    assert found(project, second) == [1, 2]
    play(project, project.sql("downgrade", "0003:0001"))
    assert project.drift(plain) == []


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_script_needs_the_elements_of_the_table(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write("op.create_text_index('ix_t', 'article', ['title'])")
    with pytest.raises(MigrationError, match=r"could be asked for the columns of article; give table_elements="):
        project.sql("upgrade", "head")


@pytest.mark.backends("pysqlite3")
def test_the_triggers_work_in_programs_without_this_package(tmp_path, backend):
    project = Project(tmp_path, backend)
    metadata = models("title", "body", more=[UniqueConstraint("my note")])
    migrate(project, metadata)
    backend.run_connection(project.engine, lambda c: fill(c, metadata))
    with sqlite3.connect(backend.url.database) as plain:
        plain.execute("INSERT INTO article (id, title) VALUES (3, 'red wine')")
        plain.execute("INSERT OR REPLACE INTO article (id, title, \"my note\") VALUES (4, 'red tape', 'zebra')")
        plain.execute("DELETE FROM article WHERE id = 1")
    plain.close()
    assert found(project, metadata) == [3, 4]
