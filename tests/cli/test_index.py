"""sqla-vector index: indexes, how well they find, and what to set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from sqla_vector import bulk
from tests.cli.conftest import Shop, on_terminal
from tests.support.backends import Backend

EACH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")
BOTH = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
ONE = pytest.mark.backends("pysqlite3", "sqlite_stdlib")


class Searched(Shop):
    """The application of ``searched.py``, with rows."""

    source = "searched.py"

    def __init__(self, directory: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(directory, backend, monkeypatch)
        monkeypatch.setenv("SQLA_VECTOR_APP", f"{self.module}:Tracked")
        matrix = np.random.default_rng(1).normal(size=(1_200, 16)).astype(np.float32)
        rows = {"id": np.arange(1, 1_201), "kind": ["article"] * 1_200, "embedding": matrix}
        self.connection(lambda c: bulk.load(c, self.models.Article, rows))
        if backend.family == "postgresql":
            self.sql("ANALYZE article")


@pytest.fixture
def shop(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Searched]:
    found = Searched(tmp_path, backend, monkeypatch)
    yield found
    found.models.Session = found.models.Tracked
    found.close()


@EACH
def test_indexes_are_listed_with_the_columns_that_have_none(shop: Searched):
    article, photo = shop.json("index", "list")["columns"]
    assert (article["column"], photo) == ("Article.embedding", {"column": "Photo.pixels", "indexes": []})
    (index,) = article["indexes"]
    assert {name: index[name] for name in ("name", "precision", "metric", "state", "rows")} == {
        "name": "ix_article",
        "precision": "binary",
        "metric": "l2",
        "state": "ready",
        "rows": 1_200,
    }
    shown = shop("index", "list").stdout
    assert "Article.embedding  ix_article" in shown
    assert "Photo.pixels has no index" in shown


@EACH
def test_what_is_found_is_kept_and_shown_and_measured(shop: Searched):
    found = shop.json("index", "tune", "Article.embedding", "--recall", "0.5", "--sample", "10")
    assert (found["index"], found["is_reached"], found["is_remembered"]) == ("ix_article", True, True)
    (stats,) = shop.json("index", "stats", "article.embedding")["indexes"]
    assert stats["tuned"] == [{"k": 10, "recall": 0.5, **found["settings"]}]
    (measured,) = shop.json("index", "recall", "Article.embedding", "--recall", "0.5", "--sample", "10")["measured"]
    assert measured["settings"] == {"recall": 0.5, **found["settings"]}
    assert measured["index"] == "ix_article"
    shown = shop("index", "stats").stdout
    assert "tuned: recall 0.5 at k=10 with oversample=" in shown


@BOTH
def test_a_setting_can_be_measured_at_several_values_and_drawn(shop: Searched):
    arguments = ["Article.embedding", "--sample", "10", "-k", "5", *("--oversample", "1", "--oversample", "30")]
    measured = shop.json("index", "recall", *arguments)["measured"]
    assert [one["settings"] for one in measured] == [{"oversample": 1}, {"oversample": 30}]
    assert measured[0]["recall"] < measured[1]["recall"]
    result = shop("index", "recall", *arguments, "--plot", "recall.html")
    assert "drawn: recall.html" in result.stderr
    assert "oversample=30" in result.stdout
    assert "<svg" in Path("recall.html").read_text()


@ONE
def test_a_recall_that_is_too_low_ends_with_one(shop: Searched):
    arguments = ["index", "recall", "Article.embedding", "--sample", "10", "--oversample", "1"]
    assert shop(*arguments, "--at-least", "0.1").exit_code == 0
    assert shop(*arguments, "--at-least", "0.99").exit_code == 1


@ONE
def test_queries_come_from_a_file_of_numbers_alone(shop: Searched):
    np.save("queries.npy", np.random.default_rng(2).normal(size=(7, 16)))
    np.save("objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save("flat.npy", np.ones(16))
    np.save("narrow.npy", np.ones((2, 3)))
    Path("text.npy").write_text("no array")
    arguments = ["index", "recall", "Article.embedding", "--queries"]
    assert shop.json(*arguments, "queries.npy")["measured"][0]["queries"] == 7
    for file, said in {
        "objects.npy": "cannot be read as an array of numbers",
        "text.npy": "cannot be read as an array of numbers",
        "nowhere.npy": "cannot be read as an array of numbers",
        "flat.npy": "has to hold one array of shape (n, dim)",
        "narrow.npy": "article.embedding",
    }.items():
        result = shop(*arguments, file)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


@pytest.mark.backends("psycopg")
def test_a_recall_that_cannot_be_reached_ends_with_one(shop: Searched):
    # Of so few rows PostgreSQL scans all before enough candidates are asked for.
    result = shop("index", "tune", "Article.embedding", "--recall", "0.99", "--sample", "4", "--plot", "tuned.html")
    assert (result.exit_code, "ix_article cannot reach recall 0.99" in result.stdout) == (1, True)
    assert "oversample=" in Path("tuned.html").read_text()


@BOTH
def test_nothing_is_kept_if_it_is_not_to_be(shop: Searched):
    arguments = ["index", "tune", "Article.embedding", "--recall", "0.5", "--sample", "4", "--no-remember"]
    assert shop.json(*arguments)["is_remembered"] is False
    assert shop.json("index", "stats")["indexes"][0]["tuned"] == []


@EACH
def test_advice_is_given_for_each_column(shop: Searched):
    first, second = shop.json("index", "advise")["columns"]
    assert (first["column"], first["method"], first["declared"]) == ("article.embedding", "none", ["ix_article"])
    assert (second["column"], second["rows"]) == ("photo.pixels", 0)
    shown = shop(
        "index", "advise", "Photo.pixels", "--rows", "3000000", "--memory", "4000", "--metric", "cosine"
    ).stdout
    assert 'vector_index("ix_photo_pixels", "pixels", metric="cosine"' in shown
    assert "3,000,000 rows" in shown


@EACH
def test_an_index_is_built_anew_when_that_is_agreed_to(shop: Searched):
    refused = shop("index", "optimize", "Article.embedding")
    assert refused.exit_code == 2
    assert (
        "The index of Article.embedding will be built anew from 1,200 vectors. This is not a terminal" in refused.stderr
    )
    done = shop.json("index", "optimize", "Article.embedding", "--yes", "--vacuum")["done"]
    assert done[-1].startswith("VACUUM")
    assert any("ANALYZE" in line for line in done)
    again = shop("index", "optimize", "Article.embedding", "--yes", "--no-concurrently").stdout
    assert "CONCURRENTLY" not in again
    assert shop.json("index", "stats")["indexes"][0]["state"] == "ready"


@ONE
def test_on_a_terminal_it_asks(shop: Searched):
    code, shown = on_terminal(["index", "optimize", "Article.embedding"], shop, "n\n")
    assert (code, "Go on? [y/N]" in shown, "nothing was done" in shown) == (2, True, True)
    code, shown = on_terminal(["index", "optimize", "Article.embedding"], shop, "y\n")
    assert (code, "made anew" in shown) == (0, True)


@BOTH
def test_what_is_to_be_done_ends_with_one(shop: Searched):
    shop.connection(lambda c: next(iter(shop.models.Article.__table__.indexes)).drop(c))
    (stats,) = shop.json("index", "stats", code=1)["indexes"]
    assert stats["state"] == "missing"
    assert "create it" in stats["advice"]
    result = shop("index", "optimize", "Article.embedding", "--yes")
    assert (result.exit_code, "ix_article is not in the database" in result.stderr) == (2, True)


@ONE
def test_sessions_that_are_not_tracked_need_the_models(shop: Searched):
    shop.monkeypatch.setenv("SQLA_VECTOR_APP", f"{shop.module}:make")
    result = shop("index", "list")
    assert result.exit_code == 2
    assert "are not tracked, so they do not tell what is mapped: give --models module:Base" in result.stderr
    found = shop.json("index", "list", "--models", f"{shop.module}:Base")["columns"]
    assert [one["column"] for one in found] == ["Article.embedding", "Photo.pixels"]


@ONE
@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["recall", "Article.title"], 'there is no vector column "Article.title"; there are: Article.embedding', 2),
        (["recall", "Photo.pixels"], "photo.pixels: no row has a vector", 2),
        (["recall", "Article.embedding", "--oversample", "0"], "oversample", 2),
        (["recall", "Article.embedding", "-k", "-1"], "-k", 2),
        (["recall", "Article.embedding", "--sample", "1000000000"], "--sample", 2),
        (["recall", "Article.embedding", "--recall", "2"], "recall must be a number over 0 and under 1", 2),
        (["recall", "Article.embedding", "--plot", "recall.pdf"], "a plot is written as .png or .html", 2),
        (["recall", "Article.embedding", "--plot", "nowhere/recall.png"], "there is no directory 'nowhere'", 2),
        (
            [
                *("recall", "Article.embedding", "--probes", "1", "--probes", "2"),
                *("--ef-search", "1", "--ef-search", "2"),
            ],
            "only one setting may be repeated, not ef_search and probes",
            2,
        ),
        (["tune", "Photo.pixels"], "has no vector index for cosine", 2),
        (["tune", "Article.embedding", "--metric", "nothing"], "nothing", 2),
        (["list", "--models", "MODULE:Article.title"], "is no declarative base and no registry", 2),
        (["list", "--app", "MODULE:engine"], "is no sessionmaker and no async_sessionmaker", 2),
        (["list", "--app", "MODULE:Unbound", "--models", "MODULE:Base"], "have no engine", 2),
        (["list", "--app", ""], "no application was named", 2),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(shop: Searched, arguments: list[str], said: str, code: int):
    result = shop("index", *(one.replace("MODULE", shop.module) for one in arguments))
    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@ONE
def test_a_database_that_is_away_is_told_from_other_trouble(shop: Searched):
    result = shop("index", "list", "--app", f"{shop.module}:Away", "--models", f"{shop.module}:Base")
    assert result.exit_code == 3
    assert "the database cannot be reached" in result.stderr
    assert "hunter22" not in result.output


@ONE
def test_a_pipe_gets_the_result_and_nothing_else(shop: Searched):
    done = shop.script("index", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["columns"][0]["column"] == "Article.embedding"
    assert shop.script("index", "--help").returncode == 0


@pytest.mark.backends("psycopg")
def test_a_refusal_of_the_database_is_one_sentence(shop: Searched):
    shop.connection(lambda c: c.execute(text("DROP TABLE article CASCADE")) and None)
    result: Any = shop("index", "stats")
    assert result.exit_code == 2
    assert "the database refused: relation" in result.stderr
