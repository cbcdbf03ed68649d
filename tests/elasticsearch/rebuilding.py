"""A process that rebuilds and is killed: ``python -m tests.elasticsearch.rebuilding DATABASE NODE INDEX ROWS``."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from elasticsearch import Elasticsearch
from sqlalchemy.orm import sessionmaker

from sqla_vector.elasticsearch import Rebuild
from tests.elasticsearch.synced import mirrored_models
from tests.tracking.limited import make_engine

PAGE = 20


def main(database: str, node: str, name: str, rows: str) -> None:
    """Rebuild, and be killed when so many rows are loaded."""

    def die(progress: Any) -> None:
        if progress.done >= int(rows):
            os.kill(os.getpid(), signal.SIGKILL)

    base = mirrored_models(name)
    with Elasticsearch(node) as client:
        sessions = sessionmaker(make_engine(database))
        Rebuild(sessions, client, base.index, page=PAGE, workers=2, save_every=0.0, on_progress=die).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
