"""Pre-annotations: what fits becomes predictions of a version, what does not is told, and the service goes on."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import LABEL_CONFIG, World, label, retrain, rgb

from backend.errors import BackendError, LabelStudioError, UsageError
from backend.formats.preannotations import Found, FoundLabels
from backend.loop import reconcile
from backend.loop.preannotate import Preannotation, parse_label_map, preannotate

UPLOADS = ["/data/upload/1/0000000a-a.png", "/data/upload/1/0000000b-b.png", "/data/upload/1/0000000c-c.png"]


def found(undecided: dict[str, tuple[str, ...]] | None = None, **labels: str | tuple[str, float]) -> FoundLabels:
    """Labels of files such as a.png."""
    given = {f"{name}.png": Found(*((item,) if isinstance(item, str) else item)) for name, item in labels.items()}
    return FoundLabels(given, undecided or {}, (), "a rule")


def run(world: World, labels: FoundLabels, **changes: Any) -> Preannotation:
    given: dict[str, Any] = {"version": "yolo-1", "label_map": {}, "advance": lambda step, done, total: None, **changes}
    return preannotate(world.services.label_studio, 1, labels, **given)


def predictions(world: World, version: str = "yolo-1") -> list[tuple[int, float | None, list[str]]]:
    """(task, score, labels) of one version."""
    return [
        (row["task"], row["score"], row["result"][0]["value"]["choices"])
        for row in world.label_studio[1].predictions
        if row["model_version"] == version
    ]


def test_labels_become_predictions(world: World) -> None:
    """By the files' names; a score only where there is one."""
    world.label_studio.add_project(1, UPLOADS)
    done = run(world, found(a="cat", b=("dog", 0.75)))
    assert predictions(world) == [(1, None, ["cat"]), (2, 0.75, ["dog"])]
    assert (done.n_imported, done.n_replaced, done.n_tasks_without_file) == (2, 0, 1)
    (region,) = world.label_studio[1].predictions[1]["result"]
    assert region == {
        "from_name": "choice",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": ["dog"]},
        "score": 0.75,
    }


def test_again_they_are_replaced_and_other_versions_stay(world: World) -> None:
    """However often."""
    world.label_studio.add_project(1, UPLOADS)
    run(world, found(a="cat", b="dog"))
    run(world, found(a="cat"), version="coco")
    done = run(world, found(a="dog", c="dog"))
    assert done.n_replaced == 2
    assert predictions(world) == [(1, None, ["dog"]), (3, None, ["dog"])]
    assert predictions(world, "coco") == [(1, None, ["cat"])]


def test_what_does_not_fit_is_told_and_left_out(world: World) -> None:
    """A label that is not offered, by its name; a file that no task shows; one whose label nothing decides."""
    world.label_studio.add_project(1, UPLOADS)
    done = run(world, found({"c.png": ("cat", "dog")}, a="cat", b="Dog", z="Dog"))
    assert predictions(world) == [(1, None, ["cat"])]
    assert done.unknown_labels == {"Dog": 2}
    assert done.without_task == ("z.png",)
    assert done.undecided == {"c.png": ("cat", "dog")}


def test_labels_are_renamed(world: World) -> None:
    """Two that become one decide; a name that the files lack or the project does not offer is refused."""
    world.label_studio.add_project(1, UPLOADS)
    labels = found({"b.png": ("Dog", "puppy")}, a="Dog")
    run(world, labels, label_map=parse_label_map(["Dog=dog", "puppy=dog"]))
    assert predictions(world) == [(1, None, ["dog"]), (2, None, ["dog"])]
    with pytest.raises(UsageError, match="the files have no label 'Cat'; they have 'Dog', 'puppy'"):
        run(world, labels, label_map={"Cat": "cat"})
    with pytest.raises(UsageError, match="the project offers no label 'bird'; it offers 'cat', 'dog'"):
        run(world, labels, label_map={"Dog": "bird"})


@pytest.mark.parametrize(
    ("pairs", "reason"), [(["cat"], "no pair"), (["=Cat"], "no pair"), (["cat=Cat", "cat=Dog"], "names 'cat' twice")]
)
def test_a_map_that_is_none_is_refused(pairs: list[str], reason: str) -> None:
    """A pair has two sides, and each label one name."""
    with pytest.raises(UsageError, match=reason):
        parse_label_map(pairs)
    assert parse_label_map(["a=b=c"]) == {"a": "b=c"}


SEVERAL = LABEL_CONFIG.replace("<Choices ", '<Choices choice="multiple" ')


def sets(**labels: tuple[Found, ...]) -> FoundLabels:
    """Sets of labels of files such as a.png; where an image has one label, nothing decides."""
    given = {f"{name}.png": items for name, items in labels.items()}
    undecided = {name: tuple(item.label for item in items) for name, items in given.items()}
    return FoundLabels({}, undecided, (), "a rule", sets=given, set_rule="all of them")


def test_where_images_may_have_several_labels_all_are_predicted(world: World) -> None:
    """In the config's order; the score is their product, if each has one; what is not offered is left out and told."""
    world.label_studio.add_project(1, UPLOADS, label_config=SEVERAL)
    given = sets(
        a=(Found("dog", 0.5), Found("cat", 0.8)),
        b=(Found("dog", 0.9), Found("cat"), Found("bird", 0.1)),
        c=(Found("bird", 0.7),),
    )
    done = run(world, given)
    assert predictions(world) == [(1, 0.4, ["cat", "dog"]), (2, None, ["cat", "dog"])]
    assert (done.n_imported, done.rule, done.undecided, done.unknown_labels) == (2, "all of them", {}, {"bird": 2})


def test_a_rule_for_one_label_is_refused_where_there_may_be_several(world: World) -> None:
    """It would not be followed."""
    world.label_studio.add_project(1, UPLOADS, label_config=SEVERAL)
    with pytest.raises(UsageError, match="--box-rule largest: images of project 1 may have several labels"):
        run(world, sets(a=(Found("dog"),)), box_rule="largest")


def test_labels_of_a_set_that_become_one_are_one(world: World) -> None:
    """With the higher score."""
    world.label_studio.add_project(1, UPLOADS, label_config=SEVERAL)
    given = sets(a=(Found("dog", 0.5), Found("puppy", 0.75)))
    run(world, given, label_map={"puppy": "dog"})
    assert predictions(world) == [(1, 0.75, ["dog"])]


def test_a_classification_that_decides_nothing_is_told_in_either_kind_of_project(world: World) -> None:
    """Of its two classes one is meant."""
    world.label_studio.add_project(1, UPLOADS, label_config=SEVERAL)
    cat = Found("cat")
    done = run(world, FoundLabels({"b.png": cat}, {"a.png": ("cat", "dog")}, (), "", sets={"b.png": (cat,)}))
    assert (done.undecided, predictions(world)) == ({"a.png": ("cat", "dog")}, [(2, None, ["cat"])])


def test_a_task_that_may_show_two_files_is_not_guessed(world: World) -> None:
    """Both are called a.png."""
    world.label_studio.add_project(1, UPLOADS)
    done = run(
        world, FoundLabels({"x/a.png": Found("cat"), "y/a.png": Found("dog"), "b.png": Found("dog")}, {}, (), "")
    )
    assert done.ambiguous_tasks == {1: ("x/a.png", "y/a.png")}
    assert predictions(world) == [(2, None, ["dog"])]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (found(z="cat"), "none of 1 files, such as 'z.png', is shown by a task of project 1"),
        (found(a="Cat"), "the project offers 'cat', 'dog', the files have 'Cat'.*--map Cat=…"),
        (found({"a.png": ("cat", "dog")}), "no label that is certain"),
    ],
)
def test_nothing_to_import_changes_nothing(world: World, labels: FoundLabels, reason: str) -> None:
    """The version keeps what it has."""
    world.label_studio.add_project(1, UPLOADS)
    run(world, found(b="cat"))
    with pytest.raises(BackendError, match=reason):
        run(world, labels)
    assert predictions(world) == [(2, None, ["cat"])]


@pytest.mark.parametrize("version", ["", " yolo", "untrained", "Active learning"])
def test_names_of_the_services_own_are_refused(world: World, version: str) -> None:
    """As are those that are none."""
    world.label_studio.add_project(1, UPLOADS)
    with pytest.raises(UsageError, match="--version"):
        run(world, found(a="cat"), version=version)


def test_a_failure_on_the_way_says_to_run_it_again(world: World) -> None:
    """Whatever is there by then is replaced."""
    world.label_studio.add_project(1, UPLOADS)
    world.label_studio.failures["replace_suggestions"] = LabelStudioError("POST … answered 500", status=500)
    with pytest.raises(LabelStudioError, match="run the command again") as caught:
        run(world, found(a="cat"))
    assert caught.value.status == 500


def test_the_service_goes_on_beside_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue stays ordered by its version, is never called astray, and pruning leaves them all."""
    monkeypatch.setattr(reconcile, "KEPT_PREDICTIONS", 1)
    monkeypatch.setattr(reconcile, "QUIET_S", 0.0)
    world.label_studio.add_project(1, [rgb(250, 0), rgb(200, 0), rgb(0, 250), rgb(0, 200), UPLOADS[0]])
    world.embed_all()
    label(world, cat=[1], dog=[3])
    first = retrain(world).version
    run(world, found(a="cat"))
    assert world.label_studio[1].project.model_version == first
    label(world, cat=[2])
    second = retrain(world).version
    world.services.reconciler.reconcile(1)
    world.services.reconciler.prune(1)
    assert world.label_studio.prediction_counts(1).keys() == {"yolo-1", second}
    assert predictions(world) == [(5, None, ["cat"])]
    assert world.label_studio[1].project.model_version == second
    with pytest.raises(UsageError, match="a name of the service's own"):
        run(world, found(a="cat"), version=second)
