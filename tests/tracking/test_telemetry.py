"""Spans and metrics, as OpenTelemetry's own SDK has them in memory."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import CheckConstraint

from sqla_vector.exc import EmbedderError, EmbedderUnavailable
from sqla_vector.tracking import telemetry
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder, article_models

Make = Callable[..., Tracked]
SECRET = "The patient Jane Doe was admitted on Monday with a fracture"


class Collected:
    """What was exported since the test began."""

    def __init__(self, exporter: InMemorySpanExporter, reader: InMemoryMetricReader) -> None:
        self._exporter, self._reader = exporter, reader
        self._before = dict(self._points())

    @property
    def spans(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def _points(self) -> Iterator[tuple[tuple[str, frozenset[Any]], float]]:
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value = getattr(point, "value", None)
                        name = (metric.name, frozenset((point.attributes or {}).items()))
                        yield name, point.count if value is None else value

    def gained(self, name: str, **attributes: str) -> float:
        """Return by how much a counter went up."""
        wanted = {(key.replace("__", "."), value) for key, value in attributes.items()}
        return sum(
            value - self._before.get((metric, found), 0)
            for (metric, found), value in self._points()
            if metric == name and wanted <= found
        )

    def value(self, name: str) -> float:
        """Return a gauge."""
        return next(value for (metric, _), value in self._points() if metric == name)

    def units(self) -> dict[str, str]:
        data = self._reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: metric.unit
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name == "sqla_vector"
            for metric in scope.metrics
        }


@pytest.fixture(scope="session")
def providers() -> Iterator[tuple[InMemorySpanExporter, InMemoryMetricReader]]:
    """The providers of this process, which can be set once."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    metering = MeterProvider([reader])
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(metering)
    yield exporter, reader
    tracing.shutdown()
    metering.shutdown()


@pytest.fixture
def collected(providers: tuple[InMemorySpanExporter, InMemoryMetricReader]) -> Collected:
    providers[0].clear()
    return Collected(*providers)


def test_a_batch_is_a_span_with_three_parts(tracked: Make, collected: Collected) -> None:
    inside: list[Any] = []
    embedder = CountingEmbedder(fail=lambda texts: inside.append(trace.get_current_span().get_span_context().span_id))
    t = tracked(article_models("worker"), embedder)
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"t{n}") for n in range(1, 4)))
    t.work()
    (batch,) = [span for span in collected.spans if span.name == "sqla_vector.worker.batch"]
    parts = {
        span.name: span for span in collected.spans if span.parent and span.parent.span_id == batch.context.span_id
    }
    assert set(parts) == {"sqla_vector.worker.claim", "sqla_vector.worker.embed", "sqla_vector.worker.write"}
    assert batch.attributes == {"sqla_vector.entries": 3}
    assert parts["sqla_vector.worker.embed"].attributes == {"sqla_vector.texts": 3, "sqla_vector.model": "counting@1"}
    # The spans of an HTTP client in the embedder belong to that of the call, in whatever thread it runs.
    assert inside == [parts["sqla_vector.worker.embed"].context.span_id]
    for part in parts.values():
        assert batch.start_time <= part.start_time <= part.end_time <= batch.end_time


def test_a_worker_with_nothing_to_do_makes_no_spans(tracked: Make, collected: Collected) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    t.work()
    assert [span for span in collected.spans if span.name.startswith("sqla_vector")] == []


def test_a_flush_is_a_span_around_the_embedder(tracked: Make, collected: Collected) -> None:
    inside: list[Any] = []
    embedder = CountingEmbedder(fail=lambda texts: inside.append(trace.get_current_span().get_span_context().span_id))
    t = tracked(article_models(), embedder)
    t.run(lambda s: s.add_all([t.base.Article(title="a"), t.base.Article(title="b")]))
    (span,) = [span for span in collected.spans if span.name == "sqla_vector.flush"]
    assert span.attributes == {"sqla_vector.texts": 2, "sqla_vector.model": "counting@1"}
    assert inside == [span.context.span_id]
    assert collected.gained("sqla_vector.embed.texts", sqla_vector__origin="flush") == 2
    assert collected.gained("sqla_vector.embed.duration", sqla_vector__origin="flush") == 1


def test_metrics_count_what_happened(tracked: Make, collected: Collected) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    t = tracked(article_models("worker"), CountingEmbedder(fail=refuse))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title="bad" if n == 2 else f"t{n}") for n in range(1, 5)))
    t.work(attempts=2)
    assert (
        collected.gained("sqla_vector.embed.texts", sqla_vector__origin="worker", sqla_vector__model="counting@1") == 3
    )
    assert collected.gained("sqla_vector.worker.rows", sqla_vector__outcome="written") == 3
    assert collected.gained("sqla_vector.worker.rows", sqla_vector__outcome="retried") == 1
    assert collected.gained("sqla_vector.failures", error__type="embedder", sqla_vector__entity="article") == 2
    assert collected.gained("sqla_vector.dead", sqla_vector__entity="article") == 1
    assert (collected.value("sqla_vector.outbox.pending"), collected.value("sqla_vector.outbox.dead")) == (4, 0)
    # Another worker looks as it begins.
    t.work()
    assert (collected.value("sqla_vector.outbox.pending"), collected.value("sqla_vector.outbox.dead")) == (0, 1)
    assert collected.value("sqla_vector.outbox.age") == 0
    assert collected.units() == {
        "sqla_vector.embed.texts": "{text}",
        "sqla_vector.embed.duration": "s",
        "sqla_vector.worker.rows": "{row}",
        "sqla_vector.failures": "{failure}",
        "sqla_vector.dead": "{row}",
        "sqla_vector.outbox.pending": "{entry}",
        "sqla_vector.outbox.dead": "{entry}",
        "sqla_vector.outbox.age": "s",
    }


def test_the_guide_lists_the_metrics_and_their_units() -> None:
    page = (Path(__file__).parents[2] / "docs" / "production.md").read_text(encoding="utf-8")
    source = Path(telemetry.__file__).read_text(encoding="utf-8")
    made = dict(re.findall(r'create_\w+\(\s*"(sqla_vector\.[\w.]+)",\s*"([^"]+)"', source))
    listed = {
        name: unit
        for names, unit in re.findall(r"^\| (`sqla_vector\.[^|]*) \| `([^`]+)` \|", page, re.MULTILINE)
        for name in re.findall(r"`(sqla_vector\.[\w.]+)`", names)
    }
    assert len(made) == 8
    assert listed == made


def test_an_outage_counts_as_one_failure(tracked: Make, collected: Collected) -> None:
    def down(texts: list[str]) -> None:
        raise EmbedderUnavailable("down")

    t = tracked(article_models("worker"), CountingEmbedder(fail=down))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"t{n}") for n in range(1, 4)))
    t.once(t.worker())
    assert collected.gained("sqla_vector.failures", error__type="embedder_outage") == 1
    (embed,) = [span for span in collected.spans if span.name == "sqla_vector.worker.embed"]
    assert embed.attributes["error.type"] == "EmbedderUnavailable"
    assert embed.status.status_code is trace.StatusCode.ERROR


def test_nothing_private_is_in_a_span_or_metric(tracked: Make, collected: Collected) -> None:
    def refuse(texts: list[str]) -> None:
        if len(texts) > 1:
            raise EmbedderError(f"refused {texts}")

    base = article_models("worker")
    base.Article.__table__.append_constraint(CheckConstraint("embedding IS NULL", name="never"))
    t = tracked(base, CountingEmbedder(fail=refuse))
    t.run(lambda s: s.add_all([base.Article(id=4711, title=SECRET), base.Article(id=4712, title="HIV positive")]))
    t.work(attempts=1)
    written = "".join(span.to_json() for span in collected.spans)
    assert "EmbedderError" in written
    for word in ("Jane", "fracture", "HIV", "4711", "refused", "INSERT", "UPDATE"):
        assert word not in written
        assert word not in str(collected.units())
        assert not any(word in str(name) for name, _ in collected._points())


PROGRAM = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "opentelemetry":
                raise ModuleNotFoundError(name)

    if sys.argv[1] == "without":
        sys.meta_path.insert(0, Blocker())

    from sqlalchemy import create_engine
    from sqlalchemy.orm import sessionmaker
    from sqla_vector.tracking import Worker, track
    from tests.tracking.models import CountingEmbedder, article_models

    assert "opentelemetry" not in sys.modules, "importing the package costs nothing"
    bases = [article_models("flush"), article_models("worker")]
    for base in bases:
        engine = create_engine("sqlite://", plugins=["sqla_vector"])
        base.metadata.create_all(engine)
        sessions = sessionmaker(engine)
        track(sessions, embedders={"counting": CountingEmbedder()}, outbox=base.outbox, models=base)
        with sessions.begin() as session:
            session.add(base.Article(title="a"))
        print(Worker(sessions, poll=0.01).run(until_empty=True).written)
        engine.dispose()
    print("opentelemetry" in sys.modules)
"""


@pytest.mark.parametrize(("how", "printed"), [("without", "0 1 False"), ("with", "0 1 True")])
def test_without_the_package_everything_works(how: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), how],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == printed.split()
