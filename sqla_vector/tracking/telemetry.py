"""Spans and metrics of OpenTelemetry; needs the package ``opentelemetry-api``.

Names follow the conventions of OpenTelemetry: units are UCUM, and ``error.type`` says what failed.  No attribute
has a key, a text or a reason in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Final

from opentelemetry import metrics, trace

from sqla_vector.tracking.events import BatchFinished, Event, Outage, Outcome, QueueSeen, RowFailed, TextsEmbedded

__all__ = ["Telemetry"]

_SCOPE: Final = "sqla_vector"

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Buckets of durations: the default ones are for milliseconds."""


class Telemetry:
    """The instruments; they go to the providers that the program sets, or nowhere."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(_SCOPE)
        meter = metrics.get_meter(_SCOPE)
        self._texts = meter.create_counter("sqla_vector.embed.texts", "{text}", "Texts that were embedded")
        self._duration = meter.create_histogram(
            "sqla_vector.embed.duration",
            "s",
            "Time that one call of an embedder took",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._rows = meter.create_counter("sqla_vector.worker.rows", "{row}", "Rows that workers saw to, by outcome")
        self._failures = meter.create_counter(
            "sqla_vector.failures", "{failure}", "Rows that failed, and outages, by what failed"
        )
        self._dead = meter.create_counter("sqla_vector.dead", "{row}", "Rows that failed for the last time")
        self._pending = meter.create_gauge("sqla_vector.outbox.pending", "{entry}", "Entries that wait")
        self._buried = meter.create_gauge("sqla_vector.outbox.dead", "{entry}", "Entries that are dead")
        self._age = meter.create_gauge("sqla_vector.outbox.age", "s", "How long the oldest entry has been waiting")

    @contextmanager
    def span(self, name: str, started: int | None, attributes: Mapping[str, str | int]) -> Iterator[Any]:
        """Surround a piece of work with a span."""
        # Errors are not recorded as OpenTelemetry would: SQLAlchemy's have the parameters of the statement.
        with self._tracer.start_as_current_span(
            name,
            start_time=started,
            attributes={f"{_SCOPE}.{key}": value for key, value in attributes.items()},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(trace.Status(trace.StatusCode.ERROR))
                raise

    def past(self, name: str, started: int, ended: int) -> None:
        """Add a span that is over to the present one."""
        self._tracer.start_span(name, start_time=started).end(ended)

    def record(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, TextsEmbedded):
            attributes = {"sqla_vector.model": event.model, "sqla_vector.origin": event.origin}
            self._texts.add(event.texts, attributes)
            self._duration.record(event.seconds, attributes)
        elif isinstance(event, BatchFinished):
            for part in fields(Outcome):
                if part.name != "entries" and (count := getattr(event.outcome, part.name)):
                    self._rows.add(count, {"sqla_vector.outcome": part.name})
        elif isinstance(event, RowFailed):
            self._failures.add(1, {"error.type": event.kind, "sqla_vector.entity": event.entity})
            if event.is_dead:
                self._dead.add(1, {"sqla_vector.entity": event.entity})
        elif isinstance(event, Outage):
            self._failures.add(1, {"error.type": f"{event.of}_outage"})
        elif isinstance(event, QueueSeen):
            self._pending.set(event.pending)
            self._buried.set(event.dead)
            self._age.set(event.age)
