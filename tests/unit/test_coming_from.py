"""docs/coming-from.md: every line is done by a test, and what needs no Label Studio runs here as it stands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from coming_from import (
    AGENT,
    NAMED,
    PAGE,
    REPOSITORY,
    SYSTEMS,
    WALKS,
    WEATHER,
    Row,
    is_a_test,
    python_blocks,
    rows,
    settings_of,
    unaccounted,
    walked,
    walking,
)

from backend.adapters.registry import load_head
from backend.config import Settings
from backend.demo import write_digits
from backend.formats.lightly_predictions import check_predictions, read_predictions
from backend.formats.simple import write_simple
from backend.lightly import Dataset, ScorerObjectDetection
from backend.loop.folder import classes_of

WEATHERS = ("cloudy", "rain", "shine", "sunrise")
SETTINGS = {"BACKBONE": "descriptor", "ALLOW_WEIGHTS_DOWNLOAD": "false"}


def steps() -> list[tuple[str, str]]:
    return walked((REPOSITORY / walk).read_text(encoding="utf-8") for walk in WALKS)


def test_every_row_is_done_by_a_test() -> None:
    """Typed in a walk through its table, or done by a test that is there; a row that is new is noticed."""
    found = rows()
    assert unaccounted(found, steps()) == []
    new = [
        Row(WEATHER, "Sweep the floor", "not needed"),
        Row(AGENT, "Again until the model", "`python -m backend status 3`"),
    ]
    assert unaccounted([*found, *new], steps()) == new
    assert [test for tests in NAMED.values() for test in tests if not is_a_test(test)] == []
    assert not is_a_test("tests/unit/test_coming_from.py::test_that_is_not_there")


def test_nothing_names_a_row_that_is_gone() -> None:
    """Each step and each named test is of one row."""
    found = rows()
    for system, begins in {*steps(), *NAMED}:
        assert len([row for row in found if row.system == system and row.theirs.startswith(begins)]) == 1, begins


def test_the_page_has_every_system_with_its_steps() -> None:
    """Five tables, and every command in one of them."""
    found = rows()
    assert tuple(dict.fromkeys(row.system for row in found)) == SYSTEMS
    assert min(sum(row.system == system for row in found) for system in SYSTEMS) >= 10
    typed = [command for row in found for command in row.commands]
    whole = [line for line in re.findall(r"`(python -m backend [^`]+)`", PAGE.read_text("utf-8")) if "…" not in line]
    assert typed == whole


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_settings_of_a_table_go_together(system: str) -> None:
    """They hold for all its commands at once."""
    Settings.from_mapping(settings_of(system))


def test_what_the_agent_s_table_shows_is_in_its_program() -> None:
    """Line by line, so that what is run is what is read."""
    program = "".join(python_blocks())
    shown = [
        code
        for row in rows()
        if row.system == AGENT
        for code in re.findall(r"`([^`]+)`", row.here)
        if re.search(r"[(=]", code) and not code.startswith("python -m")
    ]
    assert len(shown) > 7
    assert [code for code in shown if code not in program] == []


def digits(folder: Path, names: tuple[str, ...], n: int, tmp_path: Path) -> dict[str, str]:
    """So many of scikit-learn's handwritten digits of each class, under these names; name → class."""
    write_digits(tmp_path / "all-digits")
    folder.mkdir(parents=True)
    for digit, name in enumerate(names):
        for number, path in enumerate(sorted((tmp_path / "all-digits" / str(digit)).iterdir())[:n], start=1):
            shutil.copy(path, folder / f"{name}{number}.png")
    return classes_of([path.name for path in folder.iterdir()])


def json_min(names: list[str], truth: dict[str, str], path: Path) -> None:
    """What Label Studio exports when these images were labeled."""
    exported = [
        {
            "image": f"/data/local-files/?d=x/samples_for_labelling/{name}",
            "id": number,
            "choice": truth[name],
            "annotator": 1,
            "annotation_id": number,
        }
        for number, name in enumerate(names, start=1)
    ]
    path.write_text(json.dumps(exported), encoding="utf-8")


def test_the_weather_tutorial_without_label_studio(tmp_path: Path) -> None:
    """Its commands on files; what Label Studio would export is written by the test."""
    work = tmp_path / "reader"
    truth = digits(work / "dataset2", WEATHERS, 22, tmp_path)
    with walking(WEATHER, work, SETTINGS, has_label_studio=False) as walk:
        walk.step("`setup_data.py`")
        training = json.loads((work / "work/full_train.json").read_text())
        validation = json.loads((work / "work/val.json").read_text())
        assert sorted([*training, *validation]) == sorted(truth)
        assert validation == {name: [truth[name]] for name in validation}
        (selected,) = walk.step("`run_first_selection.py`")
        initial = selected.splitlines()
        assert len(set(initial)) == 30
        assert set(initial) <= set(training)
        walk.step("See them in the Web App")
        assert sorted(path.name for path in (work / "samples_for_labelling").iterdir()) == sorted(initial)
        json_min(initial, truth, work / "annotation-0.json")
        (said,) = walk.step("`train_model_1.py`")
        first = accuracy_of(said)
        assert load_head(work / "model-0.safetensors")[0].classes == WEATHERS
        assert check_predictions(work / "work") == []
        assert sorted(read_predictions(work / "work", "weather-classification").names) == sorted(training)
        (selected,) = walk.step("`run_second_selection.py`")
        second = selected.splitlines()
        assert len(set(second) - set(initial)) == 30
        json_min([*initial, *second], truth, work / "annotation-1.json")
        (said,) = walk.step("`train_model_2.py`")
        assert "60 labels of 4 classes" in said
        assert accuracy_of(said) >= first > 40  # four classes: chance is 25


def accuracy_of(said: str) -> float:
    """The validation accuracy that `train` prints, in percent."""
    found = re.search(r"Validation accuracy: ([\d.]+)%", said)
    assert found, said
    return float(found[1])


def test_the_agent_s_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of the page as one program on digits, with a person's labels, and what its table says of each line."""
    work = tmp_path / "reader"
    truth = digits(work / "raw", ("zero", "one", "two", "three"), 60, tmp_path)
    for name in sorted(truth)[:5]:
        (work / "raw" / name).rename(work / "raw" / f"blurred-{name}")
    truth = {path.name: truth[path.name.removeprefix("blurred-")] for path in (work / "raw").iterdir()}
    monkeypatch.chdir(work)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    defined: dict[str, Any] = {}
    first, later, of_a_tag = (compile(block, str(PAGE), "exec") for block in python_blocks())

    with walking(AGENT, work, SETTINGS) as walk:
        walk.step("Account, dataset in the web app")
        exec(first, defined)
        walk.step("`lightly-magic` with")
        dataset: Dataset = defined["dataset"]
        assert sorted(dataset.names) == sorted(truth)
        assert list((work / "cache" / "embeddings").rglob("*.safetensors"))
        walk.step("`ApiWorkflowClient` with")
        walk.step("`ActiveLearningAgent` with the client")
        exec(of_a_tag, defined)
        walk.step("A tag made in the web app")
        assert sorted(defined["sharp_agent"].query_set) == sorted(name for name in truth if "blurred" not in name)
        walk.step("`SamplerConfig` with")
        initial = defined["initial_selection"]
        assert len(set(initial)) == 100
        assert dataset.tags.get("initial-selection") == tuple(initial)
        walk.step("Scroll through the tag")
        assert sorted(path.name for path in (work / "to-label").iterdir()) == sorted(initial)
        write_simple(work / "labels.json", {name: [truth[name]] for name in initial})
        walk.step("Annotate them, train a model")
        exec(later, defined)
        walk.step("Client and agent once more")
        assert defined["labeled_set"] == initial
        walk.step("`unlabeled_set`")
        assert set(defined["unlabeled_set"]) == set(truth) - set(initial)
        walk.step("`ScorerClassification`")
        assert len(defined["scorer"].calculate_scores()["uncertainty_margin"]) == len(truth) - 100
        walk.step("`SamplingMethod.CORAL`")
        assert defined["labeled_set_iteration_1"][:100] == initial
        assert dataset.tags.get("al-iteration-1") == tuple(defined["labeled_set_iteration_1"])
        assert ScorerObjectDetection.score_names()
