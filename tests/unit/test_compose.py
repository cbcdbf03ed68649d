"""docker-compose.yml is valid by the Compose specification, and safe to start on a laptop."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILE.read_text())


def test_the_compose_file_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    # The package check-jsonschema carries the published schema of the Compose specification.
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose, json.loads(schema.read_text()))


def test_the_schema_refuses_an_unknown_option(compose: dict[str, Any]) -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    compose = {**compose, "services": {"postgresql": {"image": "pgvector/pgvector:pg18", "healthchek": {}}}}
    with pytest.raises(jsonschema.ValidationError, match="healthchek"):
        jsonschema.validate(compose, json.loads(schema.read_text()))


def test_every_service_listens_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_names_its_version_and_its_health(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        tag = service["image"].rpartition(":")[2]
        assert tag != "latest"
        assert any(digit in tag for digit in "0123456789")
        assert service["healthcheck"]["test"]


def test_every_named_volume_is_declared(compose: dict[str, Any]) -> None:
    used = {volume.split(":")[0] for service in compose["services"].values() for volume in service["volumes"]}
    assert used == set(compose["volumes"])
