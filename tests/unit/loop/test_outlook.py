"""The learning curve from version to version, what is foreseen from it, and suspected labels in the record."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from fakes import LABEL_CONFIG, TinyBackbone, World, build_world, label, retrain, rgb

from backend.loop import outlook
from backend.loop.outlook import BASIS, carried_curve, extended_curve, foresee, same_labels_offered
from backend.schema import CurvePoint, ValidationFilter, VersionRecord

N_EACH = 12


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: tasks 1 to 12 red (cats), 13 to 24 green (dogs), all embedded."""
    reds = [rgb(255 - 9 * number, 0, 9 * number) for number in range(N_EACH)]
    greens = [rgb(0, 255 - 9 * number, 9 * number) for number in range(N_EACH)]
    world.label_studio.add_project(1, [*reds, *greens])
    world.embed_all()
    return world


def expected(n: int, accuracy: float = 0.8) -> CurvePoint:
    return CurvePoint("expected", n, accuracy, n)


def measured(n: int, accuracy: float = 0.8, n_images: int = 200) -> CurvePoint:
    return CurvePoint("measured", n, accuracy, n_images)


def labels_in(record: VersionRecord) -> list[int]:
    return [raw["labels_used"] for raw in record.learning_curve]


# -- the curve --------------------------------------------------------------------------------------------------------


def test_points_are_added_in_order_of_labels_kind_by_kind() -> None:
    """A measurement leaves the expected points alone."""
    curve = extended_curve([expected(10), measured(10)], [measured(12)])
    assert [(point.kind, point.labels_used) for point in curve] == [
        ("expected", 10),
        ("measured", 10),
        ("measured", 12),
    ]


def test_the_same_number_of_labels_is_one_point_the_newer() -> None:
    """A label was changed, or validation tasks were added."""
    assert extended_curve([expected(10, 0.5)], [expected(10, 0.6)]) == [expected(10, 0.6)]


def test_withdrawn_labels_take_their_points_with_them() -> None:
    """From 30 labels back to 12: what was measured with more describes a labeled set that is no more."""
    assert extended_curve([expected(n) for n in (10, 20, 30)], [expected(12)]) == [expected(10), expected(12)]


def test_a_curve_stays_small_and_keeps_its_ends() -> None:
    """A point per label up to 20,000: a few hundred points are left, the first and the last among them, none far."""
    curve: list[CurvePoint] = []
    for n in [*range(2, 500), *range(500, 20_001, 10)]:
        curve = extended_curve(curve, [expected(n)])
    numbers = [point.labels_used for point in curve]
    assert len(numbers) < 200
    assert (numbers[0], numbers[-1]) == (2, 20_000)
    assert all(after / before < 1.2 for before, after in itertools.pairwise(numbers[10:]))


@pytest.mark.parametrize(
    "raw",
    [
        None,
        3,
        {},
        {"kind": "guessed", "labels_used": 5, "accuracy": 0.5, "n_evaluated": 5},
        {"kind": "measured", "labels_used": 0, "accuracy": 0.5, "n_evaluated": 5},
        {"kind": "measured", "labels_used": 5, "accuracy": 1.5, "n_evaluated": 5},
        {"kind": "measured", "labels_used": 5, "accuracy": "0.5", "n_evaluated": 5},
        {"kind": "measured", "labels_used": True, "accuracy": 0.5, "n_evaluated": 5},
        {"kind": ["measured"], "labels_used": 5, "accuracy": 0.5, "n_evaluated": 5},
    ],
)
def test_what_is_no_point_is_left_out(raw: Any, animals: World) -> None:
    """A damaged or foreign record costs its points, never a version."""
    label(animals, cat=[1, 2], dog=[13, 14])
    record = dataclasses.replace(retrain(animals), learning_curve=[raw, dataclasses.asdict(expected(3))])
    assert CurvePoint.from_json(raw) is None
    carried = carried_curve(record, fingerprint=record.fingerprint, validation_filter=None)
    assert carried == [expected(3)]


def test_every_version_hands_the_curve_on(animals: World) -> None:
    """Three versions, three points, in plain JSON; a restart in between and pruned versions change nothing."""
    for n in (2, 3, 4):
        label(animals, cat=range(1, n + 1), dog=range(13, 13 + n))
        record = retrain(animals.again(keep_versions=1))
        animals.registry.prune(1, 1)
    assert labels_in(record) == [4, 6, 8]
    (*_, last) = record.learning_curve
    assert last == {
        "kind": "expected",
        "labels_used": 8,
        "accuracy": record.expected_accuracy,
        "n_evaluated": 8,
    }
    assert json.loads(json.dumps(record.to_json())) == record.to_json()
    kept = animals.registry.published_record(1)
    assert kept is not None
    assert dataclasses.replace(kept, stage_seconds=record.stage_seconds) == record


def test_a_damaged_published_record_costs_one_point(animals: World) -> None:
    """The curve goes on from the newest record that can be read."""
    for n in (2, 3):
        label(animals, cat=range(1, n + 1), dog=range(13, 13 + n))
        record = retrain(animals)
    (animals.registry.project_directory(1) / "versions" / record.version / "record.json").write_text("{}")
    label(animals, cat=[4], dog=[16])
    assert labels_in(retrain(animals)) == [4, 8]


def test_a_lost_data_folder_starts_a_new_curve(animals: World) -> None:
    """No version is left: nothing fails, the first point is today's."""
    import shutil

    label(animals, cat=[1, 2], dog=[13, 14])
    retrain(animals)
    folder = animals.registry.project_directory(1)
    shutil.rmtree(folder / "versions")
    (folder / "published.json").unlink()
    assert labels_in(retrain(animals)) == [4]


def test_a_record_of_an_earlier_release_has_no_curve_and_is_no_obstacle(animals: World) -> None:
    """None of the newer fields is in it."""
    label(animals, cat=[1, 2], dog=[13, 14])
    record = retrain(animals)
    path = animals.registry.project_directory(1) / "versions" / record.version / "record.json"
    old = json.loads(path.read_text())
    for name in ("learning_curve", "forecast", "suspects", "n_suspects", "validation_filter", "expected_accuracy"):
        del old[name]
    path.write_text(json.dumps(old))
    (path.parent / "evaluation.json").unlink()  # nor is there such a file
    label(animals, cat=[3], dog=[15])
    assert labels_in(retrain(animals)) == [6]
    assert animals.services.status.project(1)["n_suspects"] == 0


def test_another_backbone_starts_a_new_curve(animals: World) -> None:
    """Its accuracies are no continuation."""
    label(animals, cat=[1, 2], dog=[13, 14])
    retrain(animals)
    other = build_world(
        animals.services.settings, animals.label_studio, animals.images, TinyBackbone(fingerprint="beef")
    )
    other.embed_all()
    label(other, cat=[3], dog=[15])
    assert labels_in(retrain(other)) == [6]


def test_other_labels_offered_start_a_new_curve_another_title_does_not() -> None:
    """Three classes are harder than two; a header or the order of tags changes nothing."""
    headed = LABEL_CONFIG.replace("<View>", '<View><Header value="What is it?"/>')
    wider = LABEL_CONFIG.replace('<Choice value="dog"/>', '<Choice value="dog"/><Choice value="wolf"/>')
    assert same_labels_offered(LABEL_CONFIG, headed)
    assert not same_labels_offered(LABEL_CONFIG, wider)
    assert not same_labels_offered("<broken", LABEL_CONFIG)


def test_points_measured_on_another_split_are_dropped(animals: World) -> None:
    """Another filter, other images; what was expected stays."""
    record = VersionRecord.from_json(
        {
            **{item.name: None for item in dataclasses.fields(VersionRecord)},
            "fingerprint": "f00d",
            "validation_filter": "data.split=val",
            "learning_curve": [dataclasses.asdict(point) for point in (expected(5), measured(5))],
        }
    )
    assert carried_curve(record, fingerprint="f00d", validation_filter="data.split=val") == [expected(5), measured(5)]
    assert carried_curve(record, fingerprint="f00d", validation_filter="ground_truth") == [expected(5)]
    assert carried_curve(record, fingerprint="beef", validation_filter="data.split=val") == []
    assert carried_curve(None, fingerprint="f00d", validation_filter=None) == []


# -- what is foreseen -------------------------------------------------------------------------------------------------


def foreseen(points: list[CurvePoint]) -> dict[str, Any]:
    found = foresee(points, target=0.9, horizon=30, n_unlabeled=10_000)
    assert found is not None
    return found


GROWING = [(n, 0.95 - n**-0.5) for n in range(10, 101)]


def test_measured_points_come_before_expected_ones() -> None:
    """Both kinds would do: the measured ones are extrapolated, and the basis says so."""
    both = [measured(n, a) for n, a in GROWING] + [expected(n, 0.5) for n, _ in GROWING]
    assert foreseen(both) == foreseen(both[: len(GROWING)])
    assert foreseen(both)["basis"] == BASIS["measured"]


def test_expected_points_stand_in_while_too_few_are_measured() -> None:
    """A split labeled just now has one point: labels needed come from the expected ones, in so many words."""
    found = foreseen([measured(100, 0.85), *(expected(n, a) for n, a in GROWING)])
    assert found["basis"] == BASIS["expected"]
    assert found["verdict"] == "go_on"
    assert found["stop"] is False


def test_confidence_in_sets_is_further_off() -> None:
    """Expected points of sets say so, and the interval is wider; measured ones are as good as any."""
    points = [expected(n, a) for n, a in GROWING]
    classes, sets = (
        foresee(points, target=0.9, horizon=30, n_unlabeled=10_000, of_sets=of_sets) for of_sets in (False, True)
    )
    assert classes is not None
    assert sets is not None
    assert "pairs of photos" in sets["basis"]
    (low, high), (set_low, set_high) = (found["labels_needed_interval"] for found in (classes, sets))
    assert set_low <= low
    assert set_high is None or set_high > high
    split = [measured(n, a) for n, a in GROWING]
    assert foresee(split, target=0.9, horizon=30, n_unlabeled=10_000, of_sets=True) == foreseen(split)


def test_neither_is_unknown_and_says_why() -> None:
    """One measured point, none expected."""
    found = foreseen([measured(100, 0.85)])
    assert (found["verdict"], found["stop"], found["labels_needed"]) == ("unknown", None, None)
    assert found["reason"] in found["suggestion"]
    assert foresee([], target=0.9, horizon=30, n_unlabeled=1) is None


def test_no_more_labels_are_promised_than_images_are_left() -> None:
    """A window of 30, and 7 images left: the gain is that of 7 labels."""
    points = [measured(n, a) for n, a in GROWING]
    found = foresee(points, target=0.99, horizon=30, n_unlabeled=7)
    assert found is not None
    assert found["horizon"] == 7
    assert "7 more labels are expected to gain" in found["suggestion"]


def test_a_new_verdict_is_logged_once(animals: World, caplog: pytest.LogCaptureFixture) -> None:
    """Unknown with the first model, and with the second: one line."""
    caplog.set_level("INFO", "backend.loop.evaluate")
    label(animals, cat=[1, 2], dog=[13, 14])
    retrain(animals)
    label(animals, cat=[3])
    retrain(animals)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("outlook")]
    assert len(lines) == 1
    assert lines[0].startswith("outlook project=1 verdict=unknown: Unknown yet: the learning curve starts at 10 labels")


def test_a_reached_target_says_stop() -> None:
    """199 of 200."""
    assert foreseen([measured(40, 0.995)])["stop"] is True


def test_the_record_says_what_more_labels_give(animals: World) -> None:
    """Few labels: unknown with the reason, in the record and in the status, with the target that is set."""
    label(animals, cat=[1, 2], dog=[13, 14])
    record = retrain(animals.again(target_accuracy=0.9))
    assert record.forecast is not None
    assert (record.forecast["verdict"], record.forecast["target"]) == ("unknown", 0.9)
    assert animals.services.status.project(1)["forecast"] == record.forecast
    assert record.expected_accuracy is not None
    assert 0.5 <= record.expected_accuracy <= 1


def test_nothing_is_foreseen_without_a_model_or_without_images_left(animals: World) -> None:
    """Before two classes are known, and after the last label."""
    assert retrain(animals).forecast is None
    label(animals, cat=range(1, 13), dog=range(13, 25))
    record = retrain(animals)
    assert (record.forecast, record.expected_accuracy, record.pool_size) == (None, None, 0)


# -- suspects ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mislabeled(animals: World) -> World:
    """Ten reds are cats, ten greens dogs, but task 3, a red, is said to be a dog."""
    label(animals, cat=[1, 2, *range(4, 11)], dog=[3, *range(13, 23)])
    return animals


def test_a_label_unlike_all_its_neighbours_is_suspected(mislabeled: World) -> None:
    """Task 3 alone, with the label that it should have and a link for the browser."""
    record = retrain(mislabeled)
    assert record.n_suspects == 1
    (suspect,) = mislabeled.services.status.project(1)["suspects"]
    assert (suspect["task_id"], suspect["label"], suspect["suggested_label"]) == (3, "dog", "cat")
    assert suspect["probability"] < 0.1
    assert suspect["suggested_probability"] > 0.9
    assert suspect["link"] == "http://127.0.0.1:8080/projects/1/data?task=3"


def test_a_corrected_label_is_no_suspect_any_more(mislabeled: World) -> None:
    """The next version is clean."""
    retrain(mislabeled)
    mislabeled.label_studio.withdraw(1, 3)
    label(mislabeled, cat=[3])
    assert retrain(mislabeled).n_suspects == 0


def test_an_imported_label_is_suspected_too(mislabeled: World) -> None:
    """Label Studio marks every imported annotation as ground truth: that says nothing of the label."""
    mislabeled.label_studio.withdraw(1, 3)
    mislabeled.label_studio.annotate(1, 3, "dog", truth=True)
    assert retrain(mislabeled).n_suspects == 1


def test_a_label_given_twice_is_not_listed_again(mislabeled: World) -> None:
    """A skip confirms nothing; a second annotation that says dog too does."""
    retrain(mislabeled)
    mislabeled.label_studio.annotate(1, 3, None, skipped=True)
    assert retrain(mislabeled).n_suspects == 1
    label(mislabeled, dog=[3])
    record = retrain(mislabeled)
    assert (record.n_suspects, record.labels_by_class) == (0, {"cat": 9, "dog": 11})


def test_wrong_labels_of_the_validation_split_are_suspected_too(animals: World) -> None:
    """They spoil every measurement; judged by the head, which never saw them."""
    animals.label_studio[1].fields[3] = {"split": "val"}
    world = animals.again(validation_filter=ValidationFilter("split", "val"))
    label(world, cat=[1, 2, *range(4, 11)], dog=[3, *range(13, 23)])
    record = retrain(world)
    assert (record.accuracy, record.n_suspects) == (0.0, 1)
    assert record.suspects[0]["task_id"] == 3


def test_only_so_many_suspects_are_kept_and_all_are_counted(mislabeled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record stays small."""
    monkeypatch.setattr("backend.loop.evaluate.MAX_SUSPECTS", 0)
    record = retrain(mislabeled)
    assert (record.n_suspects, list(record.suspects)) == (1, [])
    assert outlook.MAX_SUSPECTS == 50


@pytest.mark.parametrize(
    ("hostname", "reached_by", "shown"),
    [
        ("", "http://label-studio:8080", "http://label-studio:8080"),
        ("http://localhost:8080", "http://label-studio:8080", "http://localhost:8080"),
        ("http://localhost:8080", "https://labels.example.org", "https://labels.example.org"),
        ("https://labels.example.org/", "http://10.0.0.3:8080", "https://labels.example.org"),
    ],
)
def test_links_lead_where_a_browser_finds_label_studio(
    mislabeled: World, hostname: str, reached_by: str, shown: str
) -> None:
    """Its own address if it was told one; a container's bare name is of no use to people."""
    retrain(mislabeled)
    facts = mislabeled.registry.project_facts(1)
    assert facts is not None
    mislabeled.registry.register(1, facts["created"], facts["label_config"], hostname)
    status = mislabeled.again(label_studio_url=reached_by).services.status
    assert status.project(1)["suspects"][0]["link"] == f"{shown}/projects/1/data?task=3"
