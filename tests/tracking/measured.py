"""A backfill that measures what it keeps: ``python -m tests.tracking.measured URL``.

It prints the least memory in use, in bytes, in the second and in the last quarter of its calls: what is in use
between falls as rows that were read together are embedded, and depends on which worker is how far.  It is a process
of its own, since what measures coverage keeps more and more itself.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from typing import Any

from sqlalchemy.orm import sessionmaker

from sqla_vector.tracking import Backfill
from tests.tracking.limited import make_engine, models
from tests.tracking.models import CountingEmbedder


class Forgetful(list[Any]):
    """A list that keeps nothing."""

    def append(self, value: Any) -> None:
        """Forget the value."""


def main(url: str) -> None:
    """Give all articles their vectors."""
    base, engine = models(), make_engine(url)
    used: list[int] = []

    def note(texts: list[str]) -> None:
        gc.collect()  # what waits for the collector is not kept
        used.append(tracemalloc.get_traced_memory()[0])

    embedder = CountingEmbedder(fail=note)
    embedder.calls = Forgetful()
    options = {"embedders": {"counting": embedder}, "models": base, "outbox": base.outbox}
    gc.freeze()
    tracemalloc.start()
    Backfill(sessionmaker(engine), base.Article.embedding, workers=2, batch_size=50, **options).run()
    quarter = len(used) // 4
    print(min(used[quarter : 2 * quarter]), min(used[-quarter:]))
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
