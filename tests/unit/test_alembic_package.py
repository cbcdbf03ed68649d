"""How the room of Alembic is imported, once, twice, and where Alembic is missing or too old."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest


def run(script: str) -> str:
    """Run a script in a process of its own, where nothing is imported yet, and return what it printed."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


COUNT = """
from alembic.runtime import plugins
assert list(plugins._all_plugins).count("sqla_vector") == 1
registered = plugins._all_plugins["sqla_vector"].autogenerate_comparators._registry
assert registered
before = {key: list(functions) for key, functions in registered.items()}
"""


def test_importing_the_package_imports_no_alembic():
    run("import sqla_vector, sys; assert not [m for m in sys.modules if 'alembic' in m]")


def test_importing_it_twice_registers_once():
    run(
        "import importlib, sqla_vector.alembic\n"
        + COUNT
        + "importlib.reload(sqla_vector.alembic)\n"
        + "assert {key: list(functions) for key, functions in registered.items()} == before\n"
    )


def test_importing_all_of_it_anew_leaves_one_registration_and_working_operations():
    run(
        "import sys, sqla_vector.alembic\n"
        + COUNT
        + "for name in [m for m in sys.modules if m.partition('.')[0] == 'sqla_vector']:\n"
        + "    del sys.modules[name]\n"
        + "import sqla_vector.alembic\n"
        + "assert {key: list(functions) for key, functions in registered.items()} == before\n"
        + "from alembic.operations import Operations\n"
        + "assert callable(Operations.create_vector_index)\n"
    )


def test_importing_it_leaves_the_operations_of_alembic_as_they_are():
    script = """
from alembic.operations import Operations
from alembic.ddl.impl import DefaultImpl
before = {name: vars(Operations)[name] for name in vars(Operations)}, dict(vars(DefaultImpl))
import sqla_vector.alembic
added = set(vars(Operations)) - set(before[0])
assert all(vars(Operations)[name] is member for name, member in before[0].items() if not name.startswith("__"))
assert dict(vars(DefaultImpl)) == before[1]
print(*sorted(name for name in added if not name.startswith("_")))
"""
    assert run(script).split() == [
        "change_vector_column",
        "convert_vector_column",
        "create_outbox_trigger",
        "create_text_index",
        "create_vector_extension",
        "create_vector_index",
        "drop_kept_vector_column",
        "drop_outbox_trigger",
        "drop_text_index",
        "drop_vector_extension",
        "drop_vector_index",
        "rebuild_text_index",
        "rebuild_vector_index",
        "restore_vector_column",
    ]


def test_there_is_no_entry_point_that_alembic_would_import():
    # It would be imported in the middle of "import alembic", which then fails.
    assert [plugin for plugin in entry_points(group="alembic.plugins") if "sqla_vector" in plugin.value] == []


def test_the_extra_asks_for_the_oldest_alembic_that_will_do():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert declared["optional-dependencies"]["alembic"] == ["alembic>=1.18"]
    assert not [requirement for requirement in declared["dependencies"] if "alembic" in requirement]
    assert not [group for group in declared["entry-points"] if "alembic" in group]


@pytest.mark.parametrize(
    ("hidden", "what"),
    [("alembic", "it is missing"), ("alembic.runtime.plugins", "it is older, and has no plugins")],
    ids=["missing", "older"],
)
def test_without_alembic_one_sentence_says_what_to_install(hidden: str, what: str):
    script = f"""
import sys
sys.modules[{hidden!r}] = None
import sqla_vector
try:
    import sqla_vector.alembic
except sqla_vector.PackageMissing as error:
    assert isinstance(error, ImportError) and isinstance(error, sqla_vector.ExtensionMissing)
    print(error)
"""
    assert run(script) == "migrations need Alembic 1.18 or newer: pip install 'sqla-vector[alembic]'\n", what
