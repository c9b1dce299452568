"""The data folder on a real disk: what is kept, what is served, what a crash or damage leaves."""

from __future__ import annotations

import dataclasses
import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.adapters.registry import Registry, is_own_version
from backend.errors import BackendError, StorageError, VersionNotFoundError
from backend.learning.features import FeatureSpace
from backend.learning.head import Head
from backend.schema import FinetuningRecord, MapSource, ValidationSplit, VersionRecord
from backend.storage import Address

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
CONFIG = "<View/>"
HEAD = Head(
    ("cat", "dog"),
    weights=np.array([[1, 0], [0, 1]], dtype=np.float32),
    bias=np.array([0.5, -0.5], dtype=np.float32),
    space=FeatureSpace(np.array([1, 0.5], dtype=np.float32), np.array([0.25, 0.75], dtype=np.float32)),
    strength=10.0,
)


def record(version: str, project_id: int = 3, **changes: Any) -> VersionRecord:
    plain = VersionRecord(
        version=version,
        kind="model",
        created_at="2026-03-04T05:06:07+00:00",
        project_id=project_id,
        label_config=CONFIG,
        classes=["cat", "dog"],
        labels_used=2,
        labels_by_class={"cat": 1, "dog": 1},
        ignored_labels={},
        accuracy=0.5,
        accuracy_kind="cross-validated",
        log_loss=0.7,
        strength=10.0,
        acquisition="margin",
        backbone="tiny",
        fingerprint="f00d",
        random_state=0,
        pool_size=5,
        window=[4, 5],
        seed_task_ids=[],
        seed_engine=None,
        seed_engine_reason=None,
        inputs_digest="d1",
        stage_seconds={"fit": 0.1},
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "projects")


def saved(registry: Registry, n: int = 1, project_id: int = 3, *, publish: bool = False) -> list[str]:
    names = []
    for _ in range(n):
        version = registry.new_version(project_id, 2, NOW)
        registry.save(record(version, project_id), HEAD)
        names.append(version)
    if publish:
        registry.publish(project_id, names[-1])
    return names


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- versions ---------------------------------------------------------------------------------------------------------


def test_nothing_is_there_at_first_and_asking_makes_no_folder(registry: Registry, tmp_path: Path) -> None:
    """Questions about a project nobody connected are answered with nothing, and leave nothing on disk."""
    assert registry.known_projects() == []
    assert registry.project_facts(3) is None
    assert registry.published(3) is None
    assert registry.published_record(3) is None
    assert registry.image_failures(3) == {}
    assert registry.versions(3) == []
    assert files_below(tmp_path) == []


def test_a_saved_version_is_read_back_as_it_was(registry: Registry) -> None:
    """Record and head come back equal, the head with its float32 arrays."""
    (version,) = saved(registry)
    kept = registry.record(3, version)
    assert kept == record(version)
    head = registry.head(kept)
    assert head is not None
    assert head.classes == HEAD.classes
    assert head.weights.tolist() == HEAD.weights.tolist()
    assert head.bias.tolist() == HEAD.bias.tolist()
    assert head.space.centre.tolist() == HEAD.space.centre.tolist()
    assert head.space.scale.tolist() == HEAD.space.scale.tolist()
    assert head.weights.dtype == np.float32
    assert head.strength == 10.0


def test_a_seed_version_has_no_head(registry: Registry) -> None:
    """Before two classes are known there is a record but no head."""
    version = registry.new_version(3, 0, NOW)
    seed = record(version, kind="seed", strength=None, accuracy=None)
    registry.save(seed, None)
    assert registry.head(registry.record(3, version)) is None


def test_the_published_version_is_the_one_served(registry: Registry) -> None:
    """Saving publishes nothing; publishing switches at once, for another process' registry too."""
    first, second = saved(registry, 2)
    assert registry.published(3) is None
    registry.publish(3, first)
    assert registry.published(3) == first
    registry.publish(3, second)
    published = Registry(registry.project_directory(3).parent).published_record(3)
    assert published is not None
    assert published.version == second


def test_version_names_count_up_and_say_what_they_know(registry: Registry) -> None:
    """Number, labels and time in UTC; the number goes up even within one second and across time zones."""
    first = registry.new_version(3, 12, NOW.astimezone(timezone(timedelta(hours=5))))
    assert first == "v0001-12labels-20260304T050607Z"
    registry.save(record(first), HEAD)
    assert registry.new_version(3, 12, NOW - timedelta(days=1)) == "v0002-12labels-20260303T050607Z"
    assert is_own_version(first)


def test_version_names_are_never_used_again(registry: Registry) -> None:
    """After pruning, and after the newest version's files are lost, numbers still go up."""
    names = saved(registry, 3, publish=True)
    registry.prune(3, keep=1)
    assert registry.new_version(3, 2, NOW) > names[-1]
    for path in (registry.project_directory(3) / "versions" / names[-1]).iterdir():
        path.unlink()
    (registry.project_directory(3) / "versions" / names[-1]).rmdir()
    assert registry.new_version(3, 2, NOW).startswith("v0004-")


def test_versions_are_listed_newest_first_by_number(registry: Registry) -> None:
    """v10000 is newer than v9999, although it sorts before it as text."""
    names = [f"v{number}-2labels-20260304T050607Z" for number in ("9998", "9999", "10000")]
    for name in names:
        registry.save(record(name), HEAD)
    (registry.project_directory(3) / "versions" / "notes.txt").write_text("somebody's notes")
    assert registry.versions(3) == names[::-1]
    assert registry.new_version(3, 2, NOW).startswith("v10001-")
    assert registry.prune(3, keep=1) == names[1::-1]


def test_pruning_keeps_the_newest_and_the_published(registry: Registry) -> None:
    """Of five versions with the oldest published, two newest and the oldest stay."""
    names = saved(registry, 5)
    registry.publish(3, names[0])
    assert registry.prune(3, keep=2) == [names[2], names[1]]
    assert registry.versions(3) == [names[4], names[3], names[0]]
    assert registry.published_record(3) == record(names[0])
    assert registry.prune(3, keep=2) == []


def test_a_version_is_never_changed(registry: Registry) -> None:
    """Saving under a name that is there fails and leaves the first one as it is."""
    (version,) = saved(registry)
    with pytest.raises(OSError, match=r".+"):
        registry.save(record(version, labels_used=99), HEAD)
    assert registry.record(3, version).labels_used == 2
    assert registry.versions(3) == [version]


@pytest.mark.parametrize(
    "breaks", ["safetensors.numpy.save", "os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.rename"]
)
def test_a_failure_while_saving_leaves_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    """Whichever step fails, the folder is as before and the published version still serves."""
    saved(registry, publish=True)
    folder = registry.project_directory(3)
    before = files_below(folder)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    version = registry.new_version(3, 2, NOW)
    with monkeypatch.context() as patch:
        patch.setattr(breaks, fail)
        with pytest.raises((StorageError, OSError), match="no space left"):
            registry.save(record(version), HEAD)
    assert files_below(folder) == before
    assert registry.published_record(3) is not None


def test_a_crash_while_saving_is_no_version(registry: Registry) -> None:
    """What a killed process leaves half-written is neither listed nor in the way of the next version."""
    saved(registry, publish=True)
    left_over = registry.project_directory(3) / "versions" / ".v0002-2labels-20260304T050607Z.deadbeef"
    left_over.mkdir()
    (left_over / "head.safetensors").write_bytes(b"half")
    assert len(registry.versions(3)) == 1
    version = registry.new_version(3, 2, NOW)
    registry.save(record(version), HEAD)
    assert registry.head(registry.record(3, version)) is not None


def test_a_failure_while_publishing_leaves_the_old_version(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up at the last step: the old version is served, and no temporary file stays."""
    first, second = saved(registry, 2)
    registry.publish(3, first)
    before = files_below(registry.project_directory(3))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(StorageError, match="no space left"):
        registry.publish(3, second)
    assert registry.published(3) == first
    assert files_below(registry.project_directory(3)) == before


def test_a_reader_always_finds_a_whole_published_version(registry: Registry) -> None:
    """While one thread publishes in turn, another never sees nothing, half a name or an error."""
    names = saved(registry, 2, publish=True)
    stop = threading.Event()
    seen: set[str | None] = set()

    def read() -> None:
        reader = Registry(registry.project_directory(3).parent)
        while not stop.is_set():
            seen.add(reader.published(3))

    thread = threading.Thread(target=read)
    thread.start()
    for turn in range(100):
        registry.publish(3, names[turn % 2])
    stop.set()
    thread.join()
    assert seen <= set(names)


@pytest.mark.parametrize(
    "name",
    [
        "../../3/versions/v0001-2labels-20260304T050607Z",
        "v0001-2labels-20260304T050607Z/../../..",
        "v0001-2labels-20260304T050607Z\n",
        "/etc/passwd",
        "..",
        "",
        ".v0001-2labels-20260304T050607Z",
        "v0001",
        "INITIAL",
    ],
)
def test_a_name_that_is_not_of_our_making_is_refused(registry: Registry, name: str) -> None:
    """A version name never leads out of the project's folder, whoever gives it."""
    saved(registry)
    assert not is_own_version(name)
    with pytest.raises(VersionNotFoundError):
        registry.record(3, name)
    with pytest.raises(VersionNotFoundError):
        registry.head(record(name))


@given(st.text(max_size=40))
def test_no_other_text_is_taken_for_a_version(name: str) -> None:
    """Only plain letters, digits and hyphens can be a version: nothing a file system reads in another way."""
    if is_own_version(name):
        assert all(character.isascii() and (character.isalnum() or character == "-") for character in name)


@pytest.mark.parametrize("name", ["v٠٠٠١-2labels-20260304T050607Z", "v0001-²labels-20260304T050607Z"])
def test_digits_of_other_scripts_are_no_version(name: str) -> None:
    """`\\d` matches them, our own names never hold them."""
    assert not is_own_version(name)


def test_a_version_that_is_not_there_is_named(registry: Registry) -> None:
    """The error says which project and which version."""
    with pytest.raises(VersionNotFoundError, match=r"project 3 keeps no version 'v0007-1labels-20260304T050607Z'"):
        registry.record(3, "v0007-1labels-20260304T050607Z")


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"versions": 3}', "\x00\xff", '{"version": "../x"}'])
def test_a_damaged_published_file_is_as_nothing_published(registry: Registry, content: str) -> None:
    """The service answers as before the first version, and publishing again mends it."""
    (version,) = saved(registry, publish=True)
    (registry.project_directory(3) / "published.json").write_text(content, encoding="latin-1")
    assert registry.published_record(3) is None
    registry.prune(3, keep=1)
    registry.new_version(3, 1, NOW)
    registry.publish(3, version)
    assert registry.published_record(3) == record(version)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"version": "v1"}', "\x00\xff"])
def test_a_damaged_record_is_a_version_not_found(registry: Registry, content: str) -> None:
    """Half a record serves nobody: it is an error of ours with a sentence, and no version is published."""
    (version,) = saved(registry, publish=True)
    path = registry.project_directory(3) / "versions" / version / "record.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(VersionNotFoundError, match=version):
        registry.record(3, version)
    assert registry.published_record(3) is None


def test_a_record_of_a_newer_release_is_read_without_what_is_unknown(registry: Registry) -> None:
    """A downgrade keeps serving."""
    (version,) = saved(registry, publish=True)
    path = registry.project_directory(3) / "versions" / version / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_tomorrow": [1]}))
    assert registry.published_record(3) == record(version)


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut short", "other tensors"])
def test_a_damaged_head_is_a_version_not_found(registry: Registry, damage: str) -> None:
    """The message names the version and the file, whatever happened to it."""
    from safetensors.numpy import save_file

    (version,) = saved(registry)
    path = registry.project_directory(3) / "versions" / version / "head.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 200)
    elif damage == "cut short":
        path.write_bytes(content[:-8])
    elif damage == "other tensors":
        save_file({"layer": np.zeros(2, dtype=np.float32)}, path)
    with pytest.raises(VersionNotFoundError, match=version):
        registry.head(record(version))


# -- projects ---------------------------------------------------------------------------------------------------------


def test_a_project_is_registered_once(registry: Registry) -> None:
    """True for the new one and for a changed config, False for what is known."""
    assert registry.register(3, 100, CONFIG)
    assert not registry.register(3, 100, CONFIG)
    assert registry.register(3, 100, "<View></View>")
    facts = registry.project_facts(3)
    assert facts is not None
    assert (facts["created"], facts["label_config"]) == (100, "<View></View>")
    assert registry.known_projects() == [3]


def test_the_title_is_kept_until_another_is_told(registry: Registry) -> None:
    """/setup does not know it; a new title is no news, for nothing is made from it."""
    assert registry.register(3, 100, CONFIG, title="Animals")
    assert not registry.register(3, 100, CONFIG, hostname="http://labels.example")
    assert (registry.project_facts(3) or {})["title"] == "Animals"
    assert not registry.register(3, 100, CONFIG, title="Beasts")
    assert (registry.project_facts(3) or {})["title"] == "Beasts"


def test_an_id_given_to_a_newer_project_starts_afresh(registry: Registry, tmp_path: Path) -> None:
    """Label Studio's database was made anew: project 3 is another one, and sees nothing of the old one's versions."""
    registry.register(3, 100, CONFIG)
    saved(registry, publish=True)
    registry.keep_image_failures(3, {1: "HTTP 404"})
    assert registry.register(3, 200, CONFIG)
    assert registry.published(3) is None
    assert registry.versions(3) == []
    assert registry.image_failures(3) == {}
    assert registry.known_projects() == [3]
    (aside,) = (tmp_path / "projects").glob("3.gone-*")
    assert (aside / "published.json").exists()


def test_a_config_change_keeps_the_versions(registry: Registry) -> None:
    """The same project with another labeling config keeps serving until the next retrain."""
    registry.register(3, 100, CONFIG)
    (version,) = saved(registry, publish=True)
    registry.register(3, 100, "<View></View>")
    assert registry.published(3) == version


def test_a_damaged_project_file_is_written_anew(registry: Registry) -> None:
    """What cannot be read counts as unknown; registering again keeps the versions."""
    registry.register(3, 100, CONFIG)
    (version,) = saved(registry, publish=True)
    (registry.project_directory(3) / "project.json").write_text("{")
    assert registry.project_facts(3) is None
    assert registry.register(3, 100, CONFIG)
    assert registry.published(3) == version


def test_forgetting_moves_aside_and_may_be_repeated(registry: Registry, tmp_path: Path) -> None:
    """Two projects of the same id forgotten in one second do not meet; an unknown id is fine."""
    for _ in range(2):
        registry.register(3, 100, CONFIG)
        registry.forget(3)
    registry.forget(3)
    registry.forget(99)
    assert registry.known_projects() == []
    assert len(list((tmp_path / "projects").glob("3.gone-*"))) == 2


def test_projects_do_not_touch_each_other(registry: Registry) -> None:
    """Same names, different folders."""
    (one,) = saved(registry, project_id=3, publish=True)
    (other,) = saved(registry, project_id=4)
    assert one == other
    assert registry.published(4) is None
    assert registry.record(4, other).project_id == 4


def test_image_failures_are_kept_as_text_keys_and_replaced_whole(registry: Registry) -> None:
    """JSON has no whole-number keys; what is mended disappears; what is the same is not written again."""
    registry.keep_image_failures(3, {12: "HTTP 404", 2: "broken"})
    assert registry.image_failures(3) == {"2": "broken", "12": "HTTP 404"}
    path = registry.project_directory(3) / "image_failures.json"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    registry.keep_image_failures(3, {2: "broken", 12: "HTTP 404"})
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    registry.keep_image_failures(3, {})
    assert registry.image_failures(3) == {}


def test_a_project_id_is_a_number(registry: Registry, tmp_path: Path) -> None:
    """What is no number leads nowhere."""
    with pytest.raises((ValueError, BackendError)):
        registry.project_directory("../../x")  # type: ignore[arg-type]
    assert files_below(tmp_path) == []


# -- the validation split ---------------------------------------------------------------------------------------------


def test_the_validation_split_is_kept_until_it_changes(registry: Registry) -> None:
    """Kept: news; kept again: none. Another process reads the same."""
    split = ValidationSplit("data.split=val", frozenset({7, 3}), 9)
    assert registry.validation_split(3) is None
    assert registry.keep_validation_split(3, split)
    assert not registry.keep_validation_split(3, ValidationSplit("data.split=val", frozenset({3, 7}), 9))
    assert Registry(registry.project_directory(3).parent).validation_split(3) == split
    assert registry.keep_validation_split(3, dataclasses.replace(split, newest=10))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"filter": "x", "task_ids": 3, "newest": 1}'])
def test_a_damaged_validation_split_is_none(registry: Registry, content: str) -> None:
    """Whoever asks lists the tasks again."""
    (registry.project_directory(3) / "validation_split.json").write_text(content)
    assert registry.validation_split(3) is None


def test_the_newest_record_that_can_be_read(registry: Registry) -> None:
    """Of three versions the newest is damaged: the second one; without any: none."""
    assert registry.newest_record(3) is None
    names = saved(registry, 3)
    (registry.project_directory(3) / "versions" / names[2] / "record.json").write_text("{}")
    found = registry.newest_record(3)
    assert found is not None
    assert found.version == names[1]


# -- fine-tuned backbones ---------------------------------------------------------------------------------------------


def test_fine_tuning_is_kept_for_every_process(registry: Registry) -> None:
    """Begun, then adopted; what is in use is kept apart and stays when the next one fails."""
    assert registry.finetuning(3) is None
    assert registry.backbone_in_use(3) is None
    adopted = FinetuningRecord("in_use", 300, "f00d", "better", fingerprint="beef", seen=[4, 5])
    registry.keep_finetuning(3, FinetuningRecord("begun", 300, "f00d", "begun"))
    registry.keep_finetuning(3, adopted)
    registry.use_backbone(3, adopted)
    registry.keep_finetuning(3, FinetuningRecord("failed", 600, "f00d", "begun", error="loss"))
    other = Registry(registry.project_directory(3).parent)
    assert other.backbone_in_use(3) == adopted
    assert (other.finetuning(3) or adopted).outcome == "failed"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"outcome": "begun", "unknown": 1}'])
def test_a_damaged_fine_tuning_record_is_none(registry: Registry, content: str) -> None:
    """It begins anew, with the backbone of the settings."""
    for name in ("finetuning.json", "backbone.json"):
        (registry.project_directory(3) / name).write_text(content)
    assert registry.finetuning(3) is None
    assert registry.backbone_in_use(3) is None


def test_weights_are_stale_when_nothing_needs_them(registry: Registry) -> None:
    """One in use, one adopted, one behind the published version, and one of none of these."""
    published = registry.new_version(3, 2, NOW)
    registry.save(record(published, 3, fingerprint="behind"), HEAD)
    registry.publish(3, published)
    for outcome, fingerprint in (("in_use", "used"), ("adopted", "next")):
        kept = FinetuningRecord(outcome, 300, "f00d", "", fingerprint=fingerprint)
        registry.keep_finetuning(3, kept)
        if outcome == "in_use":
            registry.use_backbone(3, kept)
    for fingerprint in ("used", "next", "behind", "old"):
        path = registry.weights_file(3, fingerprint)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert registry.stale_backbones(3) == ["old"]


# -- at an address of an object store ---------------------------------------------------------------------------------


def test_at_an_address_it_is_the_same_registry(store_address: Address) -> None:
    """Registered, saved, published, updated, pruned, set aside: as on disk, and for another process too."""
    registry, other = Registry(store_address / "projects"), Registry(store_address / "projects")
    assert registry.known_projects() == []
    assert registry.register(3, 10, CONFIG, "http://ls")
    assert not other.register(3, 10, CONFIG)
    assert other.known_projects() == [3]
    names = saved(registry, 4)
    assert other.published(3) is None
    registry.publish(3, names[0])
    assert other.published_record(3) == record(names[0])
    head = other.head(other.record(3, names[0]))
    assert head is not None
    assert head.weights.tolist() == HEAD.weights.tolist()
    registry.update(record(names[1], accuracy=0.75))
    assert other.record(3, names[1]).accuracy == 0.75
    assert registry.prune(3, keep=1) == [names[2], names[1]]
    assert other.versions(3) == [names[3], names[0]]
    with pytest.raises(VersionNotFoundError):
        other.head(record(names[1]))
    registry.update(record(names[1], accuracy=0.5))
    assert other.versions(3) == [names[3], names[0]]
    registry.keep_image_failures(3, {7: "broken"})
    assert other.image_failures(3) == {"7": "broken"}
    split = ValidationSplit("data.split=val", frozenset({1, 2}), 9)
    assert registry.keep_validation_split(3, split)
    assert other.validation_split(3) == split
    registry.forget(3)
    assert other.known_projects() == []
    assert other.versions(3) == []


def test_a_version_at_an_address_is_never_changed(store_address: Address) -> None:
    """Saved again under the same name it is refused; head and record are those of the first."""
    registry = Registry(store_address / "projects")
    (version,) = saved(registry)
    with pytest.raises(FileExistsError):
        registry.save(record(version, labels_used=99), dataclasses.replace(HEAD, bias=HEAD.bias + 1))
    kept = registry.record(3, version)
    assert kept.labels_used == 2
    head = registry.head(kept)
    assert head is not None
    assert head.bias.tolist() == HEAD.bias.tolist()


def test_a_crash_between_head_and_record_is_no_version(store_address: Address) -> None:
    """What a killed process leaves is neither listed nor in the way of the next version."""
    registry = Registry(store_address / "projects")
    version = registry.new_version(3, 2, NOW)
    registry._folder.write(f"3/versions/{version}/head.safetensors", b"half")
    assert registry.versions(3) == []
    later = registry.new_version(3, 2, NOW + timedelta(seconds=1))
    registry.save(record(later), HEAD)
    assert registry.versions(3) == [later]


@pytest.mark.parametrize("where", ["disk", "address"])
def test_fine_tuned_weights_come_back_as_a_file(request: pytest.FixtureRequest, tmp_path: Path, where: str) -> None:
    """Written through a path, read through a path, gone when forgotten."""
    place = tmp_path if where == "disk" else request.getfixturevalue("store_address")

    def save(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")

    Registry(place).keep_weights(3, "f00d", save)
    registry = Registry(place)
    with registry.weights(3, "f00d") as path:
        assert path.read_bytes() == b"weights"
    assert registry.stale_backbones(3) == ["f00d"]
    registry.forget_weights(3, "f00d")
    assert registry.stale_backbones(3) == []
    with registry.weights(3, "f00d") as path:
        assert not path.exists()


# -- the map ----------------------------------------------------------------------------------------------------------


ARRAYS = {"positions": np.array([[0, 1], [-1, 0.5]], np.float32), "task_ids": np.array([4, 7])}


def test_parts_of_a_map_come_back_as_they_were_kept(registry: Registry) -> None:
    """Arrays, facts, and a digest that changes with either."""
    registry.keep_map_arrays(3, "layout", ARRAYS, {"fingerprint": "f00d"})
    kept = registry.map_arrays(3, "layout")
    assert kept is not None
    assert kept.facts == {"fingerprint": "f00d"}
    assert kept.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(kept.arrays[name], array)
    assert registry.map_arrays(3, "predictions") is registry.map_arrays(4, "layout") is None
    registry.keep_map_arrays(3, "layout", ARRAYS, {"fingerprint": "beef"})
    again = registry.map_arrays(3, "layout")
    assert again is not None
    assert again.digest != kept.digest


@pytest.mark.parametrize("damage", [b"", b"{}", lambda content: content[:-3], lambda content: content[:-1] + b"!"])
def test_a_damaged_part_of_a_map_counts_as_none(registry: Registry, damage: Any) -> None:
    """Emptied, no such format, cut off, a single byte another: it is made anew."""
    registry.keep_map_arrays(3, "layout", ARRAYS, {})
    place = registry.project_directory(3)
    assert isinstance(place, Path)
    path = place / "map" / "layout.safetensors"
    path.write_bytes(damage(path.read_bytes()) if callable(damage) else damage)
    assert registry.map_arrays(3, "layout") is None


def test_what_a_map_is_to_show_is_kept(registry: Registry) -> None:
    """None before, and when the file is damaged."""
    assert registry.map_source(3) is None
    registry.keep_map_source(3, MapSource("f00d", 1280, 16))
    assert registry.map_source(3) == MapSource("f00d", 1280, 16)
    place = registry.project_directory(3)
    assert isinstance(place, Path)
    (place / "map" / "source.json").write_text('{"fingerprint": "f00d"}')
    assert registry.map_source(3) is None
