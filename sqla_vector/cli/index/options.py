"""Options that several commands of ``sqla-vector index`` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sqla_vector.cli.failure import Failed

__all__ = ["KOption", "MetricOption", "PlotOption", "QueriesOption", "SampleOption", "SeedOption", "read_queries"]

KOption = Annotated[int, typer.Option("-k", "--k", min=1, max=10_000, help="How many rows a search wants.")]
SampleOption = Annotated[
    int, typer.Option("--sample", min=2, max=5_000, help="Rows whose vectors are searched for; drawn by chance.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Of the chance.")]
MetricOption = Annotated[
    str | None, typer.Option("--metric", help="Where a column has indexes for several: cosine, l2 and so on.")
]
QueriesOption = Annotated[
    Path | None,
    typer.Option(
        "--queries",
        metavar="FILE.npy",
        help="Vectors to search for in place of rows: an array of shape (n, dim), as numpy.save() writes it.",
    ),
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw recall against latency: a .png or .html file.")
]


def read_queries(path: Path | None) -> Any:
    """Return the vectors of a file; one that could hold code is refused.

    Raises:
        Failed: it cannot be read, or is no array of numbers of two dimensions.
    """
    if path is None:
        return None
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Failed(f"{path} cannot be read as an array of numbers (numpy.save): {error}") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or not len(found):
        raise Failed(f"{path} has to hold one array of shape (n, dim), a query in each row")
    return found
