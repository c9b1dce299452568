"""The description at /openapi.json: it names every route, is valid, and the service does what it says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import schemathesis
from fakes import World
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import ignored_auth, negative_data_rejection, not_a_server_error, positive_data_acceptance
from served import basic, client_of

from backend.config import Settings
from backend.loop.connect import SECRET_HEADER
from backend.openapi import description
from backend.web import create_app

EVERYTHING = description(Settings())
OPERATIONS = [
    (method, path, operation) for path, methods in EVERYTHING["paths"].items() for method, operation in methods.items()
]


def test_it_names_every_route_and_no_other(world: World) -> None:
    """Flask's own table of routes is the truth; HEAD and OPTIONS come by themselves."""
    rules = create_app(world.services).url_map.iter_rules()
    routes = {
        (re.sub(r"<(?:\w+:)?(.*?)>", r"{\1}", rule.rule), method.lower())
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert routes == {(path, method) for method, path, _ in OPERATIONS}


def test_it_is_open_and_says_the_bounds_of_this_service(project: World) -> None:
    """Those of its settings."""
    world = project.again(max_tasks_per_request=77, max_request_bytes=12_345)
    answer = client_of(world, credentials=False).get("/openapi.json").json
    assert answer == json.loads(json.dumps(description(world.services.settings)))
    assert (answer or {})["openapi"].startswith("3.1.")
    assert "12,345 bytes" in (answer or {})["info"]["description"]
    assert '"maxItems": 77' in json.dumps(answer)


def test_it_holds_no_secret() -> None:
    """It is given to anybody."""
    secrets = {"label_studio_token": "s3-a", "backend_password": "s3-b", "webhook_secret": "s3-c", "api_token": "s3-d"}
    text = json.dumps(description(Settings(redis_url="redis://:s3-e@x", **secrets)))  # type: ignore[arg-type]
    assert "s3-" not in text


def schemas_in(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [found for item in value for found in schemas_in(item)]
    if not isinstance(value, dict):
        return []
    own = [value["schema"]] if isinstance(value.get("schema"), dict) and "type" not in value else []
    return own + [found for item in value.values() for found in schemas_in(item)]


def test_its_schemas_are_valid() -> None:
    """JSON Schema 2020-12, as OpenAPI 3.1 has it."""
    found = schemas_in(EVERYTHING["paths"])
    assert len(found) > 50
    for schema in found:
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=lambda value: str(value)[:40])
def test_its_security_is_that_of_the_service(project: World, method: str, path: str, operation: Any) -> None:
    """Each scheme that is named opens the route by itself, and those that are not named do not."""
    client = client_of(project.again(api_token="t0ken", webhook_secret="hook"), credentials=False)
    given = {
        "basic": basic(),
        "token": {"Authorization": "Bearer t0ken"},
        "webhookSecret": {SECRET_HEADER: "hook"},
    }
    named = {name for option in operation["security"] for name in option}
    is_open = {} in operation["security"]
    url = path.replace("{project_id}", "3")
    assert (client.open(url, method=method.upper()).status_code != 401) is is_open
    if operation["security"] == [{}]:
        return  # not even wrong credentials are looked at
    for name, headers in given.items():
        opened = client.open(url, method=method.upper(), headers=headers).status_code != 401
        assert opened is (name in named or (is_open and "Authorization" not in headers)), name


# -- what is described is sent, and what is not: schemathesis makes both, and judges the answers ----------------------


LEFT_OUT = [
    negative_data_rejection,  # a wrong type where nothing is read, as in 'extra_params', is no error
    positive_data_acceptance,  # a project id in which nothing is wrong is mostly that of no project
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in OPERATIONS])
def test_the_service_does_what_is_described(project: World, method: str, path: str, mode: GenerationMode) -> None:
    """No status, type or shape of an answer that is not described, and none of 500 or above."""
    project.services.changes.lasts_s = 0.0  # or each stream of news would be read for five minutes
    schema = schemathesis.openapi.from_wsgi("/openapi.json", create_app(project.services))
    tried = []
    # Of two schemes either opens /webhook: beside the right password a secret that is made up does no harm.
    left_out = [*LEFT_OUT, ignored_auth] if path == "/webhook" else LEFT_OUT
    if path == "/ready":  # 503 is what it says without a worker
        left_out = [*LEFT_OUT, not_a_server_error]

    @hypothesis_settings(
        max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(schema[path][method.upper()].as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        tried.append(case)
        case.call_and_validate(headers=basic(), excluded_checks=left_out)

    try:
        send()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "where nothing is asked for, or any text will do, nothing can be wrong"
        described = EVERYTHING["paths"][path][method]
        assert "requestBody" not in described
        assert all(parameter["schema"] == {"type": "string"} for parameter in described.get("parameters", []))
        return
    assert tried
