"""The model under Label Studio's events, and under the two label-studio-ml servers it may run in."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from typing import Any

import pytest
from fakes import CREATED, LABEL_CONFIG, World, rgb
from hypothesis import given
from hypothesis import strategies as st
from label_studio_ml.model import LabelStudioMLBase, LabelStudioMLManager

from backend import model as model_module
from backend.errors import BadRequestError
from backend.model import RETRAIN, ActiveLearningModel, project_id_of
from backend.schema import UNTRAINED

# label_studio/webhooks/models.py (WebhookAction.ACTIONS) of 1.23.2, and START_TRAINING of ml/api_connector.py.
ACTIONS = (
    "PROJECT_CREATED",
    "PROJECT_UPDATED",
    "PROJECT_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "LABEL_LINK_CREATED",
    "LABEL_LINK_UPDATED",
    "LABEL_LINK_DELETED",
    "START_TRAINING",
)
WANTED = {
    "ANNOTATION_CREATED": ["retrain(3)"],
    "ANNOTATIONS_CREATED": ["retrain(3)"],
    "ANNOTATION_UPDATED": ["retrain(3)"],
    "ANNOTATIONS_DELETED": ["retrain(3)"],
    "START_TRAINING": ["retrain(3)"],
    "TASKS_CREATED": ["plan_embedding(3)"],
    "TASKS_DELETED": ["plan_embedding(3)"],
}
"""What each event leads to; PROJECT_UPDATED depends on what changed, all others lead to nothing."""
IMAGES = [rgb(250, 0), rgb(0, 250), rgb(200, 0), rgb(0, 200)]


@pytest.fixture
def project(world: World) -> World:
    """Project 3, known to the service, nothing waiting."""
    world.label_studio.add_project(3, IMAGES)
    world.registry.register(3, CREATED, LABEL_CONFIG)
    return world


def payload(action: str) -> dict[str, Any]:
    """What Label Studio sends with each action: the project, and the key and shape of ACTIONS."""
    raw = {"id": 3, "title": "Animals", "label_config": LABEL_CONFIG, "model_version": ""}
    body: dict[str, Any] = {"action": action, "project": raw}
    task = {"id": 1, "data": {"image": IMAGES[0]}}
    annotation = {"id": 5, "task": 1, "result": [], "was_cancelled": False}
    extra: dict[str, dict[str, Any]] = {
        "ANNOTATION_CREATED": {"annotation": annotation, "task": task},
        "ANNOTATION_UPDATED": {"annotation": annotation, "task": task},
        "ANNOTATIONS_CREATED": {"annotation": [annotation], "task": [task]},
        "ANNOTATIONS_DELETED": {"annotations": [{"id": 5}]},
        "TASKS_CREATED": {"tasks": [task]},
        "TASKS_DELETED": {"tasks": [{"id": 1}]},
        "LABEL_LINK_CREATED": {"label_link": [{"id": 1}]},
        "PROJECT_DELETED": {"project": {"id": 3}},
    }
    return {**body, **extra.get(action, {})}


# -- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("with_payload", [True, False])
def test_every_action_requests_what_it_should(project: World, action: str, with_payload: bool) -> None:
    """Labels ask for a retrain, tasks for embedding, our own PATCH for nothing; without payload nothing is missed."""
    body = payload(action) if with_payload else {"action": action}
    answer = ActiveLearningModel(3, services=project.services).process_event(action, body)
    wanted = WANTED.get(action, [])
    if action == "PROJECT_UPDATED" and not with_payload:
        wanted = ["reconcile(3)"]
    assert project.waiting() == wanted
    assert ("ticket" in answer) == (wanted == ["retrain(3)"])
    assert ("job" in answer) == bool(wanted)
    assert json.loads(json.dumps(answer)) == answer


def test_only_the_button_forces_a_new_version(project: World) -> None:
    """A label leads to a version anyway; Start Training does even when nothing is new."""
    model = ActiveLearningModel(3, services=project.services)
    model.process_event("ANNOTATION_CREATED", {})
    assert not project.jobs.begin_retrain(3).forced
    model.process_event("START_TRAINING", {})
    assert project.jobs.begin_retrain(3).forced


def test_a_new_labeling_config_is_looked_into(project: World) -> None:
    """PROJECT_UPDATED with another config, or of a project not known yet."""
    body = payload("PROJECT_UPDATED")
    body["project"]["label_config"] = LABEL_CONFIG.replace("dog", "wolf")
    ActiveLearningModel(3, services=project.services).process_event("PROJECT_UPDATED", body)
    ActiveLearningModel(4, services=project.services).process_event("PROJECT_UPDATED", payload("PROJECT_UPDATED"))
    assert project.waiting() == ["reconcile(3)", "reconcile(4)"]


def test_the_project_is_taken_from_the_event_if_need_be(project: World) -> None:
    """A server that builds one model for all projects leaves it to the payload."""
    model = ActiveLearningModel(services=project.services)
    model.process_event("ANNOTATION_CREATED", payload("ANNOTATION_CREATED"))
    assert project.waiting() == ["retrain(3)"]
    with pytest.raises(BadRequestError, match="not a project id"):
        model.process_event("ANNOTATION_CREATED", {})


@pytest.mark.parametrize("event", ["", "ANNOTATION_DELETED", "annotation_created", "TOMORROW"])
def test_an_unknown_event_is_fine(project: World, event: str) -> None:
    """Label Studio of tomorrow may tell of other things."""
    assert ActiveLearningModel(3, services=project.services).process_event(event, {}) == {}
    assert project.waiting() == []


# -- project ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [3, "3", "3.1763721234", {"id": 3}, {"id": "3", "title": "x"}, "003", 3.0])
def test_a_project_id_is_read_in_all_of_label_studio_s_spellings(raw: object) -> None:
    """Number, text, id.created, and the project's own JSON."""
    assert project_id_of(raw) == 3


@pytest.mark.parametrize(
    "raw",
    [
        *(None, "", "x", "-3", -3, 0, "0", True, {}, {"id": None}, {"id": {"id": 3}}, [], [3], "3 ", "²", "٣"),
        *(2**31, "3x", "9" * 5000, "../3", float("nan"), float("inf"), "\x00", 3.5, 10**400, -(10**400), 1e300, b"3"),
    ],
)
def test_anything_else_is_no_project_id(raw: object) -> None:
    """One error that shows what came, cut short."""
    with pytest.raises(BadRequestError, match="is not a project id such as 3") as caught:
        project_id_of(raw)
    assert len(str(caught.value)) < 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.just("id") | st.text(), inner),
        max_leaves=5,
    )
)
def test_any_json_is_a_project_id_or_a_bad_request(raw: object) -> None:
    """No third way."""
    with contextlib.suppress(BadRequestError):
        assert 0 < project_id_of(raw) < 2**31


# -- fit and predict --------------------------------------------------------------------------------------------------


def test_fit_trains_when_the_job_calls_it(project: World) -> None:
    """The RQ job's event: a version is made and published; again, and the published one is named."""
    project.embed_all(3)
    model = ActiveLearningModel("3.1767225600", LABEL_CONFIG, services=project.services)
    assert model.model_version == UNTRAINED
    answer = model.fit(RETRAIN)
    assert answer == {"model_version": project.registry.published(3)} == {"model_version": model.model_version}
    assert model.fit(RETRAIN) == answer


def test_fit_in_the_calling_form_of_1_0_9_only_requests(project: World) -> None:
    """`fit((), event=…, data=…, job_id=…, workdir=…)`: the request is made, nothing is trained in the caller."""
    project.embed_all(3)
    model = ActiveLearningModel(services=project.services)
    answer = model.fit(
        (), event="ANNOTATION_CREATED", data=payload("ANNOTATION_CREATED"), job_id="1", workdir="/nowhere"
    )
    assert answer["ticket"] == 1
    assert project.waiting() == ["retrain(3)"]
    assert project.registry.published(3) is None


def test_fit_in_the_calling_form_of_2_x_only_requests(project: World) -> None:
    """`fit(event, data, **additional_params)`."""
    model = ActiveLearningModel(project_id="3", label_config=LABEL_CONFIG, services=project.services)
    assert model.fit("START_TRAINING", payload("START_TRAINING"))["ticket"] == 1
    assert model.fit("PROJECT_DELETED", payload("PROJECT_DELETED")) == {}
    assert model.fit(event="ANNOTATION_UPDATED", data=payload("ANNOTATION_UPDATED"))["ticket"] == 2
    assert project.waiting() == ["retrain(3)"]


def test_fit_without_a_project_says_so(project: World) -> None:
    """The job always has one; anybody else learns what is missing."""
    with pytest.raises(BadRequestError, match="project_id"):
        ActiveLearningModel(services=project.services).fit(RETRAIN)


def test_predict_takes_the_arguments_of_both_servers(project: World) -> None:
    """1.0.9 passes login, password and context by name, 2.x context as second argument; nothing of it is used."""
    project.embed_all(3)
    ActiveLearningModel(3, services=project.services).fit(RETRAIN)
    task = {"id": 1, "data": {"image": IMAGES[0]}, "project": 3}
    by_name = ActiveLearningModel(services=project.services).predict([task], login="a", password="b", context=None)
    second = ActiveLearningModel("3", services=project.services).predict([task], {"result": []})
    assert by_name == second
    assert by_name[0]["model_version"] == project.registry.published(3)
    assert ActiveLearningModel(services=project.services).predict([]) == []


def test_the_model_is_a_label_studio_model(project: World) -> None:
    """The base class's attributes are there, and a config its parser refuses is no obstacle."""
    model = ActiveLearningModel(3, "<View", services=project.services, hostname="http://ls", access_token="t")
    assert isinstance(model, LabelStudioMLBase)
    assert (model.hostname, model.access_token) == ("http://ls", "t")


# -- under label-studio-ml 1.0.9's own server -------------------------------------------------------------------------


@pytest.fixture
def stock_server(project: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """A test client of label_studio_ml.api with our model class, which can only ask the environment for services."""
    from label_studio_ml.api import init_app

    monkeypatch.setattr(model_module, "services_from_environment", lambda: project.services)
    monkeypatch.setattr(LabelStudioMLManager, "_current_model", {})
    app = init_app(ActiveLearningModel, model_dir=str(tmp_path / "models"))
    logging.getLogger("label_studio_ml").setLevel("WARNING")
    return app.test_client()


SETUP = {
    "project": f"3.{CREATED}",
    "schema": LABEL_CONFIG,
    "hostname": "http://127.0.0.1:8080",
    "access_token": "abc",
    "extra_params": None,
}


def test_health_under_the_stock_server(stock_server: Any) -> None:
    """UP."""
    assert stock_server.get("/health").json["status"] == "UP"


def test_setup_and_predict_under_the_stock_server(project: World, stock_server: Any) -> None:
    """Label Studio's own requests give an answer for each task, from the published version."""
    project.embed_all(3)
    ActiveLearningModel(3, services=project.services).fit(RETRAIN)
    assert stock_server.post("/setup", json=SETUP).status_code == 200
    tasks = [{"id": number + 1, "data": {"image": image}, "project": 3} for number, image in enumerate(IMAGES)]
    body = {
        "tasks": tasks,
        "project": SETUP["project"],
        "label_config": LABEL_CONFIG,
        "params": {"login": None, "password": None, "context": None},
    }
    answer = stock_server.post("/predict", json=body)
    assert answer.status_code == 200
    assert len(answer.json["results"]) == len(tasks)
    assert {item["model_version"] for item in answer.json["results"]} == {project.registry.published(3)}


def test_events_under_the_stock_server_s_job_manager(project: World, stock_server: Any, tmp_path: Any) -> None:
    """Its background job calls process_event with four arguments and no project: the payload has it."""
    from label_studio_ml.model import SimpleJobManager

    manager = SimpleJobManager(model_dir=str(tmp_path / "models"))
    body = payload("ANNOTATION_CREATED")
    result = manager.job(ActiveLearningModel, "ANNOTATION_CREATED", body, "1767225600")
    assert result["ticket"] == 1
    assert project.waiting() == ["retrain(3)"]


# -- under a 2.x server -----------------------------------------------------------------------------------------------


class ServerOfRelease2:
    """How label-studio-ml 2.x builds and calls a model (label_studio_ml/api.py of that release)."""

    def __init__(self, model_class: Any, services: Any) -> None:
        self._build = lambda project, config: model_class(project_id=project, label_config=config, services=services)

    def predict(self, body: dict[str, Any]) -> Any:
        project = str(body["project"]).split(".", 1)[0]
        return self._build(project, body["label_config"]).predict(body["tasks"], context=body["params"]["context"])

    def webhook(self, body: dict[str, Any]) -> Any:
        action = body.pop("action")
        project = str(body["project"]["id"])
        return self._build(project, body["project"]["label_config"]).fit(action, body)


def test_under_a_server_of_2_x(project: World) -> None:
    """Predictions and events in that release's calling forms."""
    project.embed_all(3)
    ActiveLearningModel(3, services=project.services).fit(RETRAIN)
    server = ServerOfRelease2(ActiveLearningModel, project.services)
    task = {"id": 1, "data": {"image": IMAGES[0]}}
    body = {"tasks": [task], "project": f"3.{CREATED}", "label_config": LABEL_CONFIG, "params": {"context": {}}}
    assert server.predict(body)[0]["model_version"] == project.registry.published(3)
    assert server.webhook(payload("ANNOTATION_UPDATED"))["ticket"] == 1
    assert "retrain(3)" in project.waiting()


def test_the_signatures_fit_both_releases() -> None:
    """Arguments that either base class passes by name have that name."""
    assert list(inspect.signature(ActiveLearningModel.__init__).parameters)[1:3] == ["project_id", "label_config"]
    assert list(inspect.signature(ActiveLearningModel.predict).parameters)[1:3] == ["tasks", "context"]
    assert list(inspect.signature(ActiveLearningModel.process_event).parameters)[1:] == [
        "event",
        "data",
        "job_id",
        "additional_params",
    ]
