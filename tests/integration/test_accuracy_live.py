"""Suspects and the validation split against real Label Studio: what a labeling team sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live import LabelingProject, Stack, colour_of, data_uri, picture

from backend.config import Settings
from backend.services import Services

MakeProject = Callable[..., LabelingProject]
COLOURS = ("red", "green", "blue")


def test_a_wrong_label_is_suspected_until_it_is_corrected_or_confirmed(
    make_project: MakeProject, services: Services
) -> None:
    """One of 18 imported labels is wrong: it alone is listed, with a link to its task; a person's word takes it off."""
    project = make_project([], connect=False)
    tasks = [
        {
            "data": {"image": data_uri(picture(COLOURS[i % 3], i)), "number": i},
            "annotations": [{"result": project.result("blue" if i == 0 else COLOURS[i % 3])}],
        }
        for i in range(18)
    ]
    project.stack.call("POST", f"/api/projects/{project.id}/import", json=tasks)
    services.connector.connect(project.id)
    status = project.wait(lambda status: status["accuracy_labels"] == 18)
    (first,) = (task for task in project.tasks() if task["data"]["number"] == 0)
    wrong, other, right = first["id"], "blue", "red"
    link = f"{project.stack.facts['label_studio_url']}/projects/{project.id}/data?task={wrong}"
    assert status["n_suspects"] == 1, status
    (suspect,) = status["suspects"]
    assert (suspect["task_id"], suspect["label"], suspect["suggested_label"]) == (wrong, other, right)
    assert suspect["link"] == link
    done = project.stack.cli("suspects", str(project.id))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"task {wrong}: labeled '{other}' (")
    assert link in done.stdout.splitlines()[0]

    second = project.annotate(wrong, other)
    project.wait(lambda status: status["n_suspects"] == 0)
    project.stack.call("DELETE", f"/api/annotations/{second}/")
    project.wait(lambda status: status["n_suspects"] == 1)
    path = f"/api/annotations/{first['annotations'][0]['id']}/"
    project.stack.call("PATCH", path, json={"result": project.result(right)})
    project.wait(lambda status: status["n_suspects"] == 0)


def test_suspects_need_no_label_studio_but_a_project(stack: Stack, make_project: MakeProject) -> None:
    """Read from the data folder: a wrong token does no harm; an unknown project and one without model are said."""
    project = make_project()
    done = stack.cli("suspects", str(project.id), LABEL_STUDIO_TOKEN="f" * 40)
    assert done.returncode == 0
    assert "no label is judged yet" in done.stdout
    done = stack.cli("suspects", "99999")
    assert (done.returncode, done.stdout) == (1, "")
    assert "project 99999 is not connected" in done.stderr


class Split:
    """A project of 18 squares, six of them with data.split = val, and a service of its own with that filter.

    It shares no Redis database and no data folder with the running worker, which knows no filter.
    """

    def __init__(self, project: LabelingProject, folder: Path) -> None:
        stack = project.stack
        self.project = project
        self.settings = {
            "DATA_DIR": str(folder),
            "REDIS_URL": stack.environment["REDIS_URL"].removesuffix("/0") + "/1",
            "VALIDATION_FILTER": "data.split=val",
        }
        self.services = Services(Settings.from_mapping({**stack.environment, **self.settings}))
        tasks = [
            {"data": {"image": data_uri(picture(COLOURS[i % 3], i)), "split": "val" if i < 6 else "train"}}
            for i in range(18)
        ]
        stack.call("POST", f"/api/projects/{project.id}/import", json=tasks)
        by_split = {task["id"]: task["data"]["split"] for task in project.tasks()}
        self.validation = {task_id for task_id, split in by_split.items() if split == "val"}
        self.others = set(by_split) - self.validation

    def again(self, validation_filter: str) -> Services:
        """The same service with another filter."""
        settings = {**self.project.stack.environment, **self.settings, "VALIDATION_FILTER": validation_filter}
        return Services(Settings.from_mapping(settings))

    def doctor(self, services: Services) -> tuple[str, str | None]:
        """Finding and cure of the check of the validation split."""
        found = {check.name: check for check in services.doctor.examine([self.project.id])}
        check = found[f"project {self.project.id}: validation split"]
        assert check.ok
        assert check.warning == (check.cure is not None)
        return check.found, check.cure


@pytest.fixture
def split(make_project: MakeProject, tmp_path: Path) -> Iterator[Split]:
    """The project, everything embedded."""
    made = Split(make_project([], connect=False), tmp_path)
    made.services.jobs.redis.flushdb()
    made.services.embedder.embed_now(made.project.id, made.services.label_studio.tasks(made.project.id, "image"))
    yield made
    made.services.close()


def test_the_validation_split_measures_and_is_never_asked_for(split: Split) -> None:
    """Never in a window, never trained on; labeled, it gives the accuracy; `doctor` counts it all the way."""
    project, services = split.project, split.services
    seed = services.trainer.retrain(project.id)
    assert seed is not None
    assert set(seed.window) <= split.others
    found, cure = split.doctor(services)
    assert found == "data.split=val takes 6 of 18 tasks, 0 of these are labeled"
    assert "Label Tasks As Displayed" in str(cure)
    for task_id in (*seed.window, *split.validation):
        project.annotate(task_id, colour_of(project, task_id))
    assert services.trainer.retrain(project.id) is not None
    model = services.evaluator.evaluate(project.id)
    assert model is not None
    assert (model.labels_used, model.validation_labels, model.validation_tasks) == (len(seed.window), 6, 6)
    assert model.accuracy_kind == "measured on 6 validation tasks"
    assert set(model.window) == split.others - set(seed.window)
    assert split.doctor(services) == ("data.split=val takes 6 of 18 tasks, 6 of these are labeled", None)
    for validation_filter, words in (("data.split=test", "split is 'train' (12), 'val' (6)"), ("data.a=1", "no field")):
        other = split.again(validation_filter)
        assert words in split.doctor(other)[0]
        other.close()


def test_ground_truth_annotations_measure(split: Split) -> None:
    """With the other filter: a mark set in Label Studio moves a label from training to validation."""
    project, services = split.project, split.again("ground_truth")
    made = {task_id: project.annotate(task_id, colour_of(project, task_id)) for task_id in sorted(split.others)}
    marked = list(made)[:4]
    for task_id in marked:
        project.stack.call("PATCH", f"/api/annotations/{made[task_id]}/", json={"ground_truth": True})
    assert services.trainer.retrain(project.id) is not None
    record = services.evaluator.evaluate(project.id)
    assert record is not None
    assert (record.labels_used, record.accuracy_kind) == (8, "measured on 4 validation tasks")
    assert set(record.window) == split.validation
    assert split.doctor(services) == ("ground_truth takes 4 of 18 tasks, 4 of these are labeled", None)
    services.close()
