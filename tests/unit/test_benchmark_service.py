"""The arithmetic behind the benchmarks of the running service, and the stand-in they use for Label Studio."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from label_studio_sdk.label_interface.interface import LabelInterface

from backend.adapters.label_studio import LabelStudioClient, answers_of_event, event_of_webhook
from backend.adapters.registry import Registry
from backend.choices import parse_labeling_config
from backend.errors import LabelStudioError
from backend.schema import QueueEntry
from benchmarks import service, stack
from benchmarks.stand_in import LABEL_CONFIG, LABELS, Project, StandIn, image_reference, serve, task_json

# -- arithmetic -------------------------------------------------------------------------------------------------------


def test_the_schedule_is_even_and_as_long_as_asked() -> None:
    """Four a second for a second and a half: at 0, 0.25, …, and the last before the end."""
    assert stack.schedule(4, 1.5) == [0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert stack.schedule(50, 60)[-1] == pytest.approx(59.98)
    assert stack.schedule(1, 0.5) == []


def test_an_open_loop_sends_on_while_earlier_calls_wait() -> None:
    """Each call waits until all four have begun, which a closed loop would never reach."""
    everybody = threading.Barrier(4, timeout=20)
    took = stack.open_loop(lambda _: everybody.wait(), [0.0, 0.0, 0.0, 0.0])
    assert len(took) == 4


def test_time_is_counted_from_when_a_call_was_due() -> None:
    """One thread, calls of 10 s that are due 1 s apart: the third waits for two others, 8 s, before its own 10 s."""
    now = [100.0]

    def work(_: int) -> None:
        now[0] += 10

    took = stack.open_loop(work, [0.0, 1.0, 2.0], n_threads=1, clock=lambda: now[0], sleep=lambda _: None)
    assert took == [10, 19, 28]


def test_a_call_is_not_sent_before_it_is_due() -> None:
    """The clock stands still but for the sleeps: they are as long as the pauses."""
    now, slept = [5.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    stack.open_loop(lambda _: None, [0.0, 2.0, 2.0, 5.0], clock=lambda: now[0], sleep=sleep)
    assert slept == [2.0, 3.0]


def test_what_a_call_raises_is_not_lost() -> None:
    """A refused webhook spoils the measurement, not only one figure."""

    def refuse(number: int) -> None:
        if number == 1:
            raise RuntimeError("answered 503")

    with pytest.raises(RuntimeError, match="503"):
        stack.open_loop(refuse, [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3, 1, 2], 0.5, 2),
        ([4, 1, 3, 2], 0.5, 2),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 101)), 1, 100),
        ([7], 0.01, 7),
        ([1, 9], 0.99, 9),
    ],
)
def test_a_quantile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    """At least the share of the values is not larger; nothing is interpolated, so a rare stall is seen."""
    assert stack.quantile(values, share) == expected
    assert stack.quantile(values, share) == np.quantile(values, share, method="inverted_cdf")


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1], 0), ([1], 1.1)])
def test_there_is_no_quantile_of_nothing(values: list[float], share: float) -> None:
    """Nor of a share that is none."""
    with pytest.raises(ValueError, match="expected some values and a share"):
        stack.quantile(values, share)


def test_the_slope_is_that_of_the_least_squares_line() -> None:
    """By hand: 0, 0, 3 at 0, 1, 2 rise by 1.5 a step; beside numpy's on noise; a level line has none."""
    assert stack.slope([0, 1, 2], [0, 0, 3]) == pytest.approx(1.5)
    assert stack.slope([10, 20, 30], [800, 800, 800]) == 0
    random = np.random.default_rng(0)
    x, y = random.random(50), random.random(50)
    assert stack.slope(x.tolist(), y.tolist()) == pytest.approx(np.polyfit(x, y, 1)[0])


@pytest.mark.parametrize(("x", "y"), [([], []), ([1], [1]), ([1, 1], [1, 2]), ([1, 2], [1])])
def test_a_slope_needs_two_positions(x: list[float], y: list[float]) -> None:
    """Fewer, or not as many values, are a mistake of the caller."""
    with pytest.raises(ValueError, match="expected as many of both"):
        stack.slope(x, y)


def test_answers_are_new_labels_first_and_then_always_changes() -> None:
    """Of 1,000 retrains each must have news: no answer repeats what the task's label already is."""
    truth = [LABELS[task % 4] for task in range(600)]
    known = {task: truth[task - 1] for task in range(1, service.N_FIRST_LABELS + 1)}
    for number in range(2000):
        task, label = service.answer_of(number, truth)
        assert known.get(task) != label
        known[task] = label
    assert len(known) == service.N_LABELED


def test_memory_is_that_of_the_process() -> None:
    """Of a child that holds 40 MB and waits: so much more than of one that holds none, and shared with nobody."""
    found = []
    for n_bytes in (0, 40 * 2**20):
        program = f"held = b'x' * {n_bytes}; print(flush=True); input()"
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in stack.children(os.getpid())
        found.append(stack.memory_kb(child.pid))
        child.communicate(b"\n")
    for kind in ("rss", "pss"):
        assert found[1][kind] - found[0][kind] == pytest.approx(40 * 1024, rel=0.1)
    assert 0 < found[0]["pss"] <= found[0]["rss"]


def test_the_made_up_pool_can_be_learned_and_is_found_by_the_service(tmp_path: Path) -> None:
    """Nearest cluster tells the label of most; the store holds each row under its task's reference."""
    embeddings, labels = stack.made_up_pool(300, 64)
    assert embeddings.dtype == np.float16
    assert set(labels) == set(LABELS)
    distance = ((embeddings[:, None].astype(np.float32) - embeddings[None].astype(np.float32)) ** 2).sum(axis=2)
    nearest = (distance + np.diag(np.full(300, np.inf))).argmin(axis=1)
    assert np.mean([labels[i] == labels[j] for i, j in enumerate(nearest.tolist())]) > 0.8
    registry = Registry(tmp_path)
    stack.write_pool(registry, 7, "f00d", embeddings)
    store = stack.EmbeddingStore(registry.project_directory(7) / "embeddings", "f00d", 64)
    table = store.read()
    np.testing.assert_array_equal(table.embeddings, embeddings)
    assert table.outdated({task_id: image_reference(task_id) for task_id in range(1, 301)}) == []
    assert registry.known_projects() == [7]


# -- the stand-in -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in():
    """(address, project 3 of ten tasks)."""
    project = Project(3, 10)
    server = serve(StandIn([project]), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", project
    server.shutdown()
    thread.join()
    server.server_close()


def test_our_client_takes_the_stand_in_for_label_studio(stand_in) -> None:
    """Project, tasks, annotations, push, activation and pruning, through the code that talks to the real one."""
    url, project = stand_in
    client = LabelStudioClient(url, "tok-en")
    try:
        assert client.whoami()["id"] == 1
        assert client.project(3).n_tasks == 10
        assert [task.image for task in client.tasks(3, "image")] == [image_reference(n) for n in range(1, 11)]
        assert client.annotated_tasks(3, "image") == []
        mark = client.change_mark(3)
        project.submit(4, LABELS[0])
        assert client.change_mark(3) != mark
        (item,) = client.annotated_tasks(3, "image")
        assert (item.task.id, item.annotations[0].result[0]["value"]["choices"]) == (4, [LABELS[0]])
        with pytest.raises(LabelStudioError, match="doesn't exist"):
            client.activate_version(3, "v1")
        client.push_predictions(3, "v1", [QueueEntry(1, 0.5, []), QueueEntry(2, 0.6, [])])
        client.activate_version(3, "v1")
        assert client.project(3).model_version == "v1"
        assert client.prediction_counts(3) == {"v1": 2}
        client.delete_predictions(3, "v1")
        assert client.prediction_counts(3) == {}
        with pytest.raises(LabelStudioError, match="invalid task ID"):
            client.push_predictions(3, "v2", [QueueEntry(11, 0.5, [])])
        with pytest.raises(LabelStudioError, match="knows no GET"):
            client.server_version()
    finally:
        client.close()


def test_a_submitted_answer_is_a_webhook_the_service_understands(stand_in) -> None:
    """First created, then updated under the same id; exported for the peer; a wrong label is refused."""
    url, _ = stand_in
    person = stack.Submitter(url, 3)
    first, second = person.submit(4, LABELS[0]), person.submit(4, LABELS[1])
    assert [event["action"] for event in (first, second)] == ["ANNOTATION_CREATED", "ANNOTATION_UPDATED"]
    assert first["annotation"]["id"] == second["annotation"]["id"]
    assert first["annotation"]["updated_at"] < second["annotation"]["updated_at"]
    kept = event_of_webhook(json.loads(json.dumps(second)))
    assert kept is not None
    event = answers_of_event(kept, "image", ())
    assert event is not None
    assert (event.n_annotations, event.answered[0].task.id) == (1, 4)
    assert person.n_labels == 1
    (exported,) = httpx.get(f"{url}/api/projects/3/export").json()
    assert exported["annotations"][0]["result"][0]["value"]["choices"] == [LABELS[1]]
    for wrong in ({"project": 3, "task": 11, "label": LABELS[0]}, {"project": 3, "task": 1, "label": "fog"}):
        assert httpx.post(f"{url}/submit", json=wrong).status_code == 400
    person.close()


def test_its_tasks_and_config_are_what_label_studio_sends() -> None:
    """The config offers the labels; a task has the fields that TaskSimpleSerializer gives it."""
    assert parse_labeling_config(LABEL_CONFIG).labels == LABELS
    LabelInterface(LABEL_CONFIG).validate()
    task = task_json(3, 5)
    assert {"id", "data", "project", "annotations", "predictions", "meta", "inner_id"} <= set(task)
    assert task["data"] == {"image": image_reference(5)}


# -- the table --------------------------------------------------------------------------------------------------------


def test_every_figure_has_a_row_with_what_is_asked_of_it() -> None:
    """Parts that were not measured have none."""
    memory = {"web_rss": 204_800, "web_pss": 102_400, "rq_rss": 1_024_000, "rq_pss": 512_000}
    content = {
        "memory": {
            "first_kb": memory, "last_kb": memory, "embeddings_kb": 5120, "versions_published": 1000,
            "growth_fitted_over": [500, 1000], "growth_kb_per_retrain": dict.fromkeys(memory, 0.25),
        },
    }  # fmt: skip
    rows = {what: (figure, asked) for what, figure, asked in service.rows_of(content)}
    assert rows["web worker at the start: RSS, PSS, MB"] == ("200, 100", "≤ 500")
    assert rows["rq worker after 1,000 retrains: RSS, PSS, MB"] == ("1000, 500", "≤ 1,200 + 5")
    assert rows["rq worker, growth of RSS from retrain 500 to 1,000, kB each"] == ("+0.2", "flat")
    assert len(rows) == 6
