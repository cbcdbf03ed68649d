"""Secrets are not printed, whichever way they stand in a text."""

from __future__ import annotations

import pytest

from sqla_vector.cli.masking import Masking


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:hunter22@db:5432/x?y=1", "postgresql+psycopg://me:***@db:5432/x?y=1"),
        ("at postgresql://me:p@ss/w:rd@db/x.", "at postgresql://me:***@db/x."),
        ("postgresql://:hunter22@db/x", "postgresql://:***@db/x"),
        ("'https://me:hunter22@h/' failed", "'https://me:***@h/' failed"),
        ("connection to host=db user=me password=hunter22 failed", "connection to host=db user=me password=*** failed"),
        ("password='hun ter22' host=db", "password=*** host=db"),
        ("sslpassword=hunter22", "sslpassword=***"),
        ("Authorization: Bearer abcdef0123", "Authorization: ***"),
        ('{"api_key": "abcdef0123"}', '{"api_key": ***}'),
        ("the word is swordfish, swordfishes are not", "the word is ***, swordfishes are not"),
        ("it was sword%20%2Ffish", "it was ***"),
        ("it was sword /fish", "it was ***"),
        ("key k-1234567890", "key ***"),
    ],
)
def test_secrets_are_masked(text: str, shown: str):
    environment = {
        "SOME_URL": "postgresql://me:sword%20%2Ffish@db/x",
        "MODEL_API_KEY": "k-1234567890",
        "PGPASSWORD": "swordfish",
    }
    assert Masking(environment)(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a@b",
        "sqlite:////tmp/articles.db",
        "postgresql://me@db/x",
        'password authentication failed for user "me"',
        "about 1,200 tokens, 3 rows",
        "a:b@c",
    ],
)
def test_what_is_no_secret_stays(text: str):
    assert Masking({"SHORT_KEY": "a", "EMPTY_TOKEN": ""})(text) == text


def test_data_is_masked_at_every_depth():
    masking = Masking({})
    masking.add(["swordfish"])
    assert masking.masked({"a": ["swordfish", 1, None, {"b": ("x swordfish",)}]}) == {
        "a": ["***", 1, None, {"b": ["x ***"]}]
    }
