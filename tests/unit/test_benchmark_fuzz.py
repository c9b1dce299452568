"""The fuzzer: its judgement of answers, its requests, and a short run against the real service."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from test_model import ACTIONS

from backend.server import HEADERS
from benchmarks import REPOSITORY, RESULTS, fuzz
from benchmarks.fuzz import Attempt, Fuzzer, by_class, fault_of, table

GOOD = list(HEADERS.items())
SENTENCE = json.dumps({"error": "/webhook expects a JSON object"}).encode()


@pytest.mark.parametrize(
    ("status", "headers", "body", "fault"),
    [
        (200, GOOD, b"{}", None),
        (400, GOOD, SENTENCE, None),
        (503, GOOD, SENTENCE, None),
        (410, GOOD, b'{"job_status": "removed"}', None),
        (500, GOOD, SENTENCE, "status 500"),
        (501, GOOD, SENTENCE, "status 501"),
        (503, GOOD, b"", "status 503 without a sentence"),
        (400, GOOD, b"<html>", "status 400 without a sentence"),
        (404, GOOD, b'{"error": "no"}', "status 404 without a sentence"),
        (410, GOOD, b"{}", "status 410 without a sentence"),
        (200, [], b"{}", "no security headers"),
        (200, [*GOOD, ("x-evil", "1")], b"{}", "a header of the request's making"),
        (400, GOOD, b'{"error": "what is made-up-password for a password"}', "a secret or a traceback in the answer"),
        (400, GOOD, b'{"error": "Traceback (most recent call last)"}', "a secret or a traceback in the answer"),
    ],
)
def test_answers_are_judged(status: int, headers: list[tuple[str, str]], body: bytes, fault: str | None) -> None:
    """What the run fails on."""
    found = fault_of(Attempt("kind", b"GET / HTTP/1.1"), status, headers, body)
    assert found is None if fault is None else (found or "").startswith(fault)


def test_a_head_needs_no_sentence_in_a_body_it_cannot_have() -> None:
    """Its status line has it."""
    assert fault_of(Attempt("kind", b"HEAD / HTTP/1.1"), 404, GOOD, b"") is None


def test_requests_are_the_same_for_the_same_seed_and_of_every_kind() -> None:
    """And reach every route that takes a body; every action of Label Studio is among the webhooks replayed."""
    one, same, other = (list(itertools.islice(Fuzzer(seed), 6_000)) for seed in (0, 0, 1))
    assert one == same != other
    assert len({attempt.kind for attempt in one}) == 8
    for path in fuzz.POST_ROUTES:
        assert sum(attempt.content.startswith(f"POST {path} ".encode()) for attempt in one) > 50
    replayed = {attempt.content.partition(b"\r\n\r\n")[2] for attempt in one if attempt.kind == "webhook replayed"}
    bodies = [json.loads(body) for body in replayed]
    assert {body["action"] for body in bodies if "project" in body} == set(ACTIONS) == set(fuzz.ACTIONS)
    assert {body["action"] for body in bodies if "project" not in body} == set(ACTIONS)


def test_logs_are_judged() -> None:
    """A line for each refusal is fine."""
    assert fuzz.faults_of_logs({"web": "POST /predict answered 400: no", "worker": ""}) == []
    assert len(fuzz.faults_of_logs({"web": "Traceback (most", "worker": f"token {fuzz.SECRETS[0]}"})) == 2


def test_statuses_are_counted_by_class() -> None:
    """0 stands for no answer."""
    assert by_class(Counter({200: 3, 201: 1, 404: 2, 0: 1})) == {"2xx": 4, "4xx": 2, "none": 1}


def test_the_figures_that_are_told_are_those_of_the_last_run() -> None:
    """SECURITY.md has the table that `make fuzz` printed."""
    found = json.loads((RESULTS / "fuzz.json").read_text())
    assert (found["requests"] >= fuzz.N_REQUESTS, found["n_faults"]) == (True, 0)
    told = (REPOSITORY / "SECURITY.md").read_text()
    assert [row for row in table(found) if f"| {row[0].strip()} | {row[1]} |" not in told] == []


def test_a_short_run_finds_nothing() -> None:
    """1,500 malformed requests to gunicorn with a real Redis and a worker; `make fuzz` sends 20,000."""
    found = fuzz.run(1_500, seed=1, n_warm_up=500)
    assert found["faults"] == []
    assert found["requests"] == 1_500
    assert found["label_learned_afterwards"]
    assert set(found["by_class"]) <= {"2xx", "4xx", "5xx"}
    assert found["by_status"]["401"] > 50
    assert len(list(table(found))) >= 8
