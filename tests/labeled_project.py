"""A project with everything an export may hold, made in a real Label Studio; what was answered is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from live import picture, png

CONFIG = """<View>
  <Image name="img" value="$image"/>
  <Choices name="weather" toName="img">
    <Choice value="rain"/><Choice value="sun, mostly"/><Choice value='so-called "fog"'/><Choice value="Schönwetter"/>
  </Choices>
  <Choices name="seen" toName="img" choice="multiple">
    <Choice value="tree"/><Choice value="house, red"/><Choice value="人"/>
  </Choices>
  <TextArea name="comment" toName="img"/>
</View>"""

PLAIN_CONFIG = """<View><Image name="image" value="$image"/><Choices name="choice" toName="image">
<Choice value="cloudy"/><Choice value="rain"/></Choices></View>"""

UPLOADED = (
    "plain.png",
    'comma, and "quote".png',
    "Zürich 雨.png",
    "two annotations.png",
    "skipped.png",
    "unlabeled.png",
)
ON_DISK = ("set one/a.png", "set one/b, c.png", "set one/é.png")

Call = Callable[..., Any]


def choices(control: str, *labels: str, image: str = "img") -> dict[str, Any]:
    """What the editor submits for these labels."""
    return {"from_name": control, "to_name": image, "type": "choices", "value": {"choices": list(labels)}}


def text(written: str) -> dict[str, Any]:
    """What it submits for a comment."""
    return {"from_name": "comment", "to_name": "img", "type": "textarea", "value": {"text": [written]}}


def upload(call: Call, project_id: int, names: Sequence[str]) -> None:
    """Uploads one coloured square for each name."""
    for number, name in enumerate(names):
        content = png(picture(("red", "green", "blue")[number % 3], number))
        call("POST", f"/api/projects/{project_id}/import", files={"file": (name, content, "image/png")})


def add_local_files(call: Call, project_id: int, folder: Path) -> None:
    """Coloured squares below `folder`, which is below Label Studio's document root, as tasks of a synced storage."""
    for number, name in enumerate(ON_DISK):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        picture(("red", "green", "blue")[number % 3], number + 50).save(target)
    body = {
        "project": project_id, "path": str(folder), "use_blob_urls": True, "regex_filter": ".*png",
        "recursive_scan": True,
    }  # fmt: skip
    storage = call("POST", "/api/storages/localfiles/", json=body)
    call("POST", f"/api/storages/localfiles/{storage['id']}/sync")


def tasks_of(call: Call, project_id: int) -> dict[int, str]:
    """Task id → the reference in its data, ascending."""
    found = call("GET", "/api/tasks/", params={"project": project_id, "page_size": 1000, "resolve_uri": "false"})
    return {task["id"]: task["data"]["image"] for task in sorted(found["tasks"], key=lambda task: task["id"])}


def answer(call: Call, task_id: int, *regions: Mapping[str, Any], **more: Any) -> None:
    """Submits an annotation."""
    call("POST", f"/api/tasks/{task_id}/annotations/", json={"result": list(regions), **more})


def label_all(call: Call, project_id: int) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], list[str]]:
    """Answers the tasks made of UPLOADED and ON_DISK; (reference → weather, reference → seen, skipped references).

    The task with several annotations has them of one person, whose last one, rain, counts.
    """
    references = tasks_of(call, project_id)
    ids = list(references)
    answer(call, ids[0], choices("weather", "rain"), choices("seen", "tree"))
    answer(call, ids[1], choices("weather", "sun, mostly"), choices("seen", "tree", "house, red", "人"), text("a, b"))
    answer(call, ids[2], choices("weather", 'so-called "fog"'), text('said "x"'))
    for label in ('so-called "fog"', 'so-called "fog"', "rain"):
        answer(call, ids[3], choices("weather", label), choices("seen", "人", "tree"))
    answer(call, ids[4], was_cancelled=True)
    # ids[5] is left alone
    answer(call, ids[6], choices("weather", "Schönwetter"), choices("seen", "house, red", "tree"))
    answer(call, ids[7], choices("weather", "sun, mostly"))
    answer(call, ids[8], choices("seen", "人"))
    weather = {0: "rain", 1: "sun, mostly", 2: 'so-called "fog"', 3: "rain", 6: "Schönwetter",
               7: "sun, mostly"}  # fmt: skip
    seen = {0: ["tree"], 1: ["tree", "house, red", "人"], 3: ["人", "tree"], 6: ["house, red", "tree"], 8: ["人"]}
    return (
        {references[ids[n]]: (label,) for n, label in weather.items()},
        {references[ids[n]]: tuple(labels) for n, labels in seen.items()},
        [references[ids[4]]],
    )


def add_target_storage(call: Call, project_id: int, folder: Path) -> None:
    """A target storage in `folder`, with all annotations saved to it."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = call("POST", "/api/storages/export/localfiles", json={"project": project_id, "path": str(folder)})
    call("POST", f"/api/storages/export/localfiles/{storage['id']}/sync")
