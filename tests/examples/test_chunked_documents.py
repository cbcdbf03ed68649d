"""The example of long texts in chunks, run as a user runs it, on both databases."""

from __future__ import annotations

import re

from tests.examples.test_searches import run, url

__all__ = ["url"]


def test_chunked_documents(url: list[str]) -> None:
    output = run("chunked_documents.py", *url)
    steps = re.findall(r"^(\S.*?)  +(\d+) chunks, embedded: (\d+)$", output, re.MULTILINE)
    (_, chunks, first), (_, _, second), (_, _, third), (_, kept, fourth), (_, left, fifth) = steps
    assert int(chunks) > 100
    assert 0.9 * int(chunks) < int(first) <= int(chunks)
    assert 1 <= int(second) <= 4, "of the chunks of a long text, those around an edit"
    assert (third, fourth, fifth) == ("0", "1", "0")
    assert int(left) < int(kept) < int(chunks)
    found = re.findall(r"^    0\.\d\d  (\w+) ", output, re.MULTILINE)
    assert (found[0], found[3]) == ("argparse", "statistics")
    assert all(len(set(found[start : start + 3])) == 3 for start in (0, 3)), "three documents, not three passages"
    assert "Manual.chunks: 9 of 10 rows current, 1 stale" in output
    assert output.endswith("Manual.chunks: 9 of 9 rows current\n")
