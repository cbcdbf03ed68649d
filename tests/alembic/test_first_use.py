"""The extension comes before the first column of vectors, on whichever database the history was begun."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table

from sqla_vector import BitVector, Vector
from tests.support.backends import Backend, kinds, open_backend
from tests.support.migrations import Project


def models(*names: str, type_: Any = None) -> MetaData:
    metadata = MetaData()
    for name in names:
        Table(
            name,
            metadata,
            Column("id", Integer, primary_key=True),
            Column("embedding", Vector(3) if type_ is None else type_),
        )
    return metadata


def test_the_extension_is_created_once_in_a_history(backend: Backend, tmp_path: Path):
    project = Project(tmp_path, backend)
    first = project.revision(models("article"))
    assert first.read_text().count("op.create_vector_extension()") == 1
    project.upgrade()
    assert project.drift(models("article")) == []
    second = project.revision(models("article", "photo"))
    assert "create_vector_extension" not in second.read_text()


def test_the_extension_comes_before_the_first_column_that_is_added(backend: Backend, tmp_path: Path):
    project = Project(tmp_path, backend)
    plain = MetaData()
    Table("article", plain, Column("id", Integer, primary_key=True))
    assert "create_vector_extension" not in project.revision(plain).read_text()
    project.upgrade()
    upgrade = project.revision(models("article")).read_text().partition("def downgrade")[0]
    assert upgrade.index("op.create_vector_extension()") < upgrade.index("sqla_vector.Vector(dim=3)")
    project.upgrade()
    assert project.drift(models("article")) == []


def test_bits_need_the_extension_too_for_their_distances(backend: Backend, tmp_path: Path):
    project = Project(tmp_path, backend)
    bits = models("article", type_=BitVector(8))
    assert project.revision(bits).read_text().count("op.create_vector_extension()") == 1
    project.upgrade()
    assert project.drift(bits) == []


@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
def test_a_history_begun_on_sqlite_runs_on_postgresql(backend: Backend, tmp_path: Path, request: pytest.FixtureRequest):
    written = Project(tmp_path, backend).revision(models("article"))
    (psycopg,) = kinds(["psycopg"])
    if reason := psycopg.why_unavailable():
        pytest.skip(reason)
    (tmp_path / "server").mkdir()
    with open_backend(psycopg, tmp_path, lambda: request.getfixturevalue("postgresql_server")) as server:
        project = Project(tmp_path / "server", server)
        shutil.copy(written, project.versions)
        project.upgrade()
        assert project.drift(models("article")) == []
        project.downgrade()
