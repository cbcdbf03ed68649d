"""Vectors for rows that are there already."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, event, insert, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker

from sqla_vector.embedding import Model, fingerprint
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption
from sqla_vector.tracking import Backfill, BackfillReport, abackfill, backfill, untrack
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder, article_models
from tests.tracking.test_check import MINE, ROWS, put_rows, run_check
from tests.tracking.test_flush import assert_current

Make = Callable[..., Tracked]


def run_backfill(t: Tracked, **options: Any) -> BackfillReport:
    """Fill the articles."""
    dry_run = options.pop("dry_run", False)
    filling = make(t, **options)
    return go(t, filling, dry_run=dry_run)


def make(t: Tracked, **options: Any) -> Backfill:
    """Return a backfill that loses no time."""
    options = {"models": t.base, "backoff": 0.0, **options}
    return Backfill(t.sessions, t.base.Article.embedding, **options)


def go(t: Tracked, filling: Backfill, **options: Any) -> BackfillReport:
    """Run a backfill."""
    return t.backend.wait(filling.arun(**options)) if t.backend.is_async else filling.run(**options)


def fill_table(t: Tracked, count: int) -> None:
    """Write rows that nobody listens to."""
    put_rows(t, [{"title": f"title {n}"} for n in range(1, count + 1)])


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_gets_the_vector_of_its_text(tracked: Make, workers: int) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    put_rows(t, ROWS)
    report = run_backfill(t, workers=workers, batch_size=2)
    assert (report.rows, report.stale, report.written, report.current) == (11, 9, 9, 2)
    assert (report.failed, report.left, report.is_complete, report.after) == (0, 0, True, (11,))
    assert sorted(t.embedder.texts) == [
        "edited",
        "foreign",
        "no fingerprint",
        "no vector",
        "no vector but",
        "old",
        "other",
    ]
    assert all(len(call) <= 2 for call in t.embedder.calls)
    assert t.entries() == []
    assert run_check(t).is_clean


def test_what_is_current_is_not_embedded_again(tracked: Make) -> None:
    t = tracked(article_models("flush"), CountingEmbedder())
    fill_table(t, 30)
    assert run_backfill(t, batch_size=7).written == 30
    calls = len(t.embedder.calls)
    report = run_backfill(t, batch_size=7)
    assert (report.rows, report.current, report.written, len(t.embedder.calls)) == (30, 30, 0, calls)
    newer = CountingEmbedder("2")
    assert run_backfill(t, embedders={"counting": newer}).written == 30
    assert len(newer.texts) == 30
