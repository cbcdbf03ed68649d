"""I/O as values: what a search wants done next, so that it is written once for synchronous and asynchronous callers.

A search is a generator.  It yields steps, is sent their results, and returns what was found; :func:`run` and
:func:`arun` do nothing but carry the steps out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from sqla_vector.elasticsearch.errors import translated

__all__ = ["Ask", "Load", "Step", "Steps", "arun", "run"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: a method of the client and its arguments."""

    method: str
    """With a dot for one of the clients inside the client: ``indices.refresh``."""
    arguments: dict[str, Any]

    def call(self, client: Any) -> Any:
        """Call it; on an asynchronous client this gives something to be awaited."""
        for name in self.method.split("."):
            client = getattr(client, name)
        return client(**self.arguments)


@dataclass(frozen=True, slots=True)
class Load:
    """A query of the database: a function of the synchronous Session."""

    function: Callable[[Any], Any]


Step = Ask | Load
Steps = Generator[Step, Any, R]
"""A search that gives R."""


def run(steps: Steps[R], client: Any, session: Any, index: str) -> R:
    """Carry out a search with a synchronous client and Session.

    Args:
        steps: the search.
        client: ``Elasticsearch``.
        session: None if the search loads nothing.
        index: the declared name, for messages.
    """
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Load):
                    result = step.function(session)
                else:
                    with translated(index):
                        result = step.call(client).body
            except Exception as error:
                # The search may have something to close before it ends.
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        found: R = end.value
        return found


async def arun(steps: Steps[R], client: Any, session: Any, index: str) -> R:
    """Do the same as :func:`run` with ``AsyncElasticsearch`` and an AsyncSession."""
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Load):
                    result = await session.run_sync(step.function)
                else:
                    with translated(index):
                        result = (await step.call(client)).body
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        found: R = end.value
        return found
