"""Label Studio's own requests to the backend, and what people see of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from live import LabelingProject, Stack, colour_of, config_of
from test_loop import label_two_classes

MakeProject = Callable[..., LabelingProject]


def backend_of(project: LabelingProject) -> dict[str, object]:
    found: list[dict[str, object]] = project.stack.call("GET", "/api/ml/", params={"project": project.id})
    assert len(found) == 1
    return found[0]


def test_connected_backend_is_listed_with_its_webhook(project: LabelingProject) -> None:
    """One backend with Basic auth in state connected, one webhook with its secret and only the actions needed."""
    backend = backend_of(project)
    assert backend["state"] == "CO", backend["error_message"]
    assert backend["auth_method"] == "BASIC_AUTH"
    assert backend["model_version"] == project.status()["model_version"]
    webhooks = [
        item
        for item in project.stack.call("GET", "/api/webhooks/", params={"project": project.id})
        if item["project"] == project.id
    ]
    assert len(webhooks) == 1
    assert webhooks[0]["headers"]["X-Active-Learning-Secret"]
    assert not webhooks[0]["send_for_all_actions"]


def test_connect_again_changes_nothing(project: LabelingProject) -> None:
    """connect is idempotent: no second backend or webhook, and the queue keeps its order."""
    before = project.queue()
    done = project.stack.cli("connect", str(project.id))
    assert done.returncode == 0, done.stderr
    assert "set up now" not in done.stdout
    assert backend_of(project)
    assert project.queue() == before


def test_retrieve_predictions_for_all_tasks_gives_one_each(project: LabelingProject) -> None:
    """The Data Manager's "Retrieve predictions" brings a prediction for each task, and no second one to the window."""
    label_two_classes(project)
    version = project.status()["model_version"]
    project.stack.call(
        "POST",
        f"/api/dm/actions?id=retrieve_tasks_predictions&project={project.id}",
        json={"selectedItems": {"all": True, "excluded": []}},
    )
    for task in project.tasks():
        current = [item for item in task["predictions"] if item["model_version"] == version]
        assert len(current) == 1, task["id"]
        assert current[0]["result"]
        assert current[0]["score"] is not None


def test_versions_are_offered_in_label_studio(project: LabelingProject) -> None:
    """Label Studio's version list of the backend shows the kept versions, the published one among them."""
    answer = project.stack.call("GET", f"/api/ml/{backend_of(project)['id']}/versions")
    assert project.status()["model_version"] in answer["versions"]


def test_interactive_test_request_works(project: LabelingProject) -> None:
    """Settings → Model → "Send Test Request" answers with a prediction."""
    label_two_classes(project)
    answer = project.stack.call("POST", f"/api/ml/{backend_of(project)['id']}/predict/test?random=true", json={})
    assert answer["status"] == 200, answer


def test_other_labeling_config_is_refused_with_a_sentence_label_studio_shows(make_project: MakeProject) -> None:
    """A config this backend cannot learn from: connect says so, and so does Label Studio's own dialogue."""
    project = make_project(
        references=[],
        config='<View><Text name="t" value="$text"/><TextArea name="a" toName="t"/></View>',
        connect=False,
    )
    done = project.stack.cli("connect", str(project.id))
    assert done.returncode == 1
    assert "<Choices" in done.stderr
    facts = project.stack.facts
    answer = project.stack.label_studio.post(
        "/api/ml/",
        json={
            "project": project.id,
            "url": facts["backend_url"],
            "title": "by hand",
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": facts["backend_user"],
            "basic_auth_pass": facts["backend_password"],
        },
    )
    assert answer.status_code == 400
    assert "exactly one" in answer.text, answer.text
    assert "Choices" in answer.text


def test_config_changed_to_an_unknown_kind_and_back(project: LabelingProject) -> None:
    """A project whose config becomes something else says so in its status, keeps serving, and recovers."""
    path = f"/api/projects/{project.id}/"
    other = '<View><Image name="image" value="$image"/><TextArea name="a" toName="image"/></View>'
    project.stack.call("PATCH", path, json={"label_config": other})
    project.wait(lambda status: status["last_error"] is not None)
    assert "Choices" in project.status()["last_error"]
    project.stack.call("PATCH", path, json={"label_config": config_of(["red", "green", "blue"])})
    task_id = project.status()["window"][0]
    project.annotate(task_id, colour_of(project, task_id))
    status = project.wait(lambda status: status["labels_used"] == 1)
    assert status["last_error"] is None
    project.wait(lambda status: status["failures"] == [])


def test_connected_by_hand_in_the_ui_also_works(make_project: MakeProject) -> None:
    """Someone who adds the backend in Label Studio's settings gets embeddings and a queue without `connect`."""
    project = make_project(connect=False)
    facts = project.stack.facts
    project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"sampling": "Uncertainty sampling"})
    project.stack.call(
        "POST",
        "/api/ml/",
        json={
            "project": project.id,
            "url": facts["backend_url"],
            "title": "by hand",
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": facts["backend_user"],
            "basic_auth_pass": facts["backend_password"],
        },
    )
    status = project.wait(lambda status: status["model_version"] is not None)
    assert project.next_task() == status["window"][0]


def test_a_published_version_is_served_by_every_web_process_within_a_second(project: LabelingProject) -> None:
    """After a publish, /predict and /setup of all gunicorn workers answer from the new version, without restart."""
    label_two_classes(project)
    published = project.status()["model_version"]
    time.sleep(1)
    body = {"tasks": [{"id": project.status()["window"][0], "data": {}, "project": project.id}], "project": project.id}
    seen = set()
    for _ in range(40):
        answer = project.stack.backend.post("/predict", json=body, headers={"Connection": "close"})
        assert answer.status_code == 200
        seen.add(answer.json()["results"][0]["model_version"])
    assert seen == {published}


def test_wrong_credentials_are_told_to_the_person_who_connects(project: LabelingProject) -> None:
    """Label Studio says that the credentials are wrong, because /health answers 401 to wrong ones."""
    answer = project.stack.label_studio.post(
        "/api/ml/",
        json={
            "project": project.id,
            "url": project.stack.facts["backend_url"],
            "title": "wrong",
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": "label-studio",
            "basic_auth_pass": "wrong",
        },
    )
    assert answer.status_code == 400
    assert "authentication" in answer.text


def test_metrics_name_the_project(project: LabelingProject, stack: Stack) -> None:
    """/metrics is Prometheus text with the figures of each project."""
    text = stack.backend.get("/metrics").text
    assert f'active_learning_pool_size{{project="{project.id}"}} 18.0' in text
