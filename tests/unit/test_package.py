"""Importing the package has no effects, and the package as installed has all its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points, requires
from importlib.resources import files
from typing import Any

import pytest

# Runs in a process of its own, before anything else has imported sqla_vector. Everything of SQLAlchemy that
# the package may import is imported first, since SQLAlchemy registers listeners of its own.
PROBE = """
import json, sys, warnings
import numpy
import sqlalchemy.event.registry
import sqlalchemy.ext.asyncio, sqlalchemy.ext.compiler, sqlalchemy.orm, sqlalchemy.pool
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import asyncpg, base as postgresql_base, psycopg, psycopg2
from sqlalchemy.dialects.sqlite import aiosqlite, base as sqlite_base, pysqlite
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.pool import Pool
from sqlalchemy.sql.visitors import Visitable

def subclasses(cls):
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)

def classes_with_a_compiler():
    return sorted(
        f"{cls.__module__}.{cls.__qualname__}"
        for cls in set(subclasses(Visitable))
        if cls.__module__.startswith("sqlalchemy.") and "_compiler_dispatcher" in vars(cls)
    )

def listeners(cls):
    return {
        name: sum(len(found) for found in getattr(cls.dispatch, name)._clslevel.values())
        for name in sorted(cls.dispatch._event_names)
        if hasattr(getattr(cls.dispatch, name), "_clslevel")
    }

def state():
    dialects = [postgresql_base, asyncpg, psycopg, psycopg2, sqlite_base, aiosqlite, pysqlite]
    return {
        "reflected types, PostgreSQL": sorted(postgresql_base.ischema_names),
        "reflected types, SQLite": sorted(sqlite_base.ischema_names),
        "dialects": {
            f"{module.__name__}.{name}": sorted(vars(cls))
            for module in dialects
            for name, cls in sorted(vars(module).items())
            if isinstance(cls, type) and cls.__module__ == module.__name__
        },
        "listeners": {
            cls.__name__: listeners(cls) for cls in (Engine, Connection, Dialect, Pool, Session, Mapper)
        },
        "all listeners": len(sqlalchemy.event.registry._key_to_collection),
        "compilers": classes_with_a_compiler(),
        "warning filters": [str(entry) for entry in warnings.filters],
        "numpy errors": numpy.geterr(),
    }

before = state()
modules = set(sys.modules)
import sqla_vector
after = state()
print(json.dumps({"before": before, "after": after, "imported": sorted(set(sys.modules) - modules)}))
"""

# Drivers, which an application chooses, and packages that are imported where they are used.
OPTIONAL = {
    "aiosqlite",
    "alembic",
    "asyncpg",
    "elasticsearch",
    "matplotlib",
    "pgvector",
    "psycopg",
    "psycopg2",
    "pysqlite3",
    "rich",
    "scipy",
    "sklearn",
    "sqlite_vec",
    "tqdm",
    "typer",
}


@pytest.fixture(scope="module")
def probe() -> dict[str, Any]:
    finished = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_importing_changes_nothing_global(probe: dict[str, Any]) -> None:
    for what, before in probe["before"].items():
        assert probe["after"][what] == before, what


def test_the_probe_sees_the_listeners_of_a_class(probe: dict[str, Any]) -> None:
    # Against a probe that compares nothing with nothing after an upgrade of SQLAlchemy.
    assert {"before_execute", "connect"} <= {name for names in probe["before"]["listeners"].values() for name in names}


def test_importing_imports_no_driver_and_no_optional_package(probe: dict[str, Any]) -> None:
    assert {name.partition(".")[0] for name in probe["imported"]} & OPTIONAL == set()


def test_the_plugin_is_an_entry_point_that_loads() -> None:
    (plugin,) = entry_points(group="sqlalchemy.plugins", name="sqla_vector")
    assert plugin.value == "sqla_vector.engine:VectorPlugin"
    assert callable(plugin.load())


def test_the_core_needs_sqlalchemy_and_numpy_only() -> None:
    core = [requirement for requirement in requires("sqla-vector") or [] if "extra ==" not in requirement]
    assert {requirement.partition(">")[0].partition("<")[0] for requirement in core} == {
        "sqlalchemy",
        "numpy",
    }


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("sqla_vector") / "py.typed").is_file()


WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None
import importlib, pkgutil
import sqla_vector
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
for room in ("search", "tuning", "embedding", "tracking", "chunking", "query", "elasticsearch"):
    importlib.import_module(f"sqla_vector.{room}")
from sqla_vector.asynchrony import AsyncSession
from sqla_vector.tracking.steps import is_asynchronous
assert not is_asynchronous(sessionmaker(create_engine("sqlite://")))
assert not isinstance(object(), AsyncSession)
print("imported")
"""


def test_greenlet_is_needed_for_asynchronous_sessions_only() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_GREENLET], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr
