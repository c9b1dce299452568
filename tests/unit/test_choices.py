"""Which labeling configs are understood, what annotations mean for training, what a prediction looks like."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.choices import ChoicesConfig, agreed_tasks, parse_labeling_config, prediction_result, read_labels
from backend.errors import LabelingConfigError
from backend.schema import AnnotatedTask, Annotation, SeveralAnswers, Task

CONFIG = ChoicesConfig("choice", "image", "image", ("cat", "dog"))
CAT_DOG = '<Choice value="cat"/><Choice value="dog"/>'


def view(choices: str = CAT_DOG, attributes: str = 'choice="single"', image: str = 'value="$image"') -> str:
    return (
        f'<View><Image name="image" {image}/>'
        f'<Choices name="choice" toName="image" {attributes}>{choices}</Choices></View>'
    )


ACCEPTED = {
    "plain": (view(), CONFIG),
    "single is the default": (view(attributes=""), CONFIG),
    "single-radio": (view(attributes='choice="single-radio" showInline="true" required="true"'), CONFIG),
    "an alias is what annotations hold": (
        view('<Choice value="A cat" alias="cat"/><Choice value="dog" hotkey="2" background="red"/>'),
        CONFIG,
    ),
    "other names and field": (
        '<View><Image name="photo" value="$url" zoom="true"/>'
        '<Choices name="weather" toName="photo"><Choice value="sun"/><Choice value="rain"/></Choices></View>',
        ChoicesConfig("weather", "photo", "url", ("sun", "rain")),
    ),
    "headers, styles and a comment field beside it": (
        "<View><Style>.x{color:red}</Style><Header value='Which animal?'/><!-- note -->"
        f'<View style="display:flex"><Image name="image" value="$image"/>'
        f'<Choices name="choice" toName="image">{CAT_DOG}</Choices></View>'
        '<TextArea name="comment" toName="image" editable="true"/></View>',
        CONFIG,
    ),
    "choices on a text beside it": (
        '<View><Image name="image" value="$image"/><Text name="text" value="$caption"/>'
        f'<Choices name="other" toName="text">{CAT_DOG}</Choices>'
        f'<Choices name="choice" toName="image">{CAT_DOG}</Choices></View>',
        CONFIG,
    ),
    "labels of any script": (
        view('<Choice value="猫 &amp; 犬"/><Choice value="L&#39;été"/>'),
        ChoicesConfig("choice", "image", "image", ("猫 & 犬", "L'été")),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_single_choice_on_an_image_is_understood(case: str) -> None:
    """Names, task field and labels come from the config, in the order in which it offers them."""
    label_config, expected = ACCEPTED[case]
    assert parse_labeling_config(label_config) == expected


SEVERAL_ACCEPTED = {
    "plain": (view(attributes='choice="multiple"'), ChoicesConfig("choice", "image", "image", ("cat", "dog"), True)),
    "names, field and looks of one's own": (
        '<View><Header value="What is the weather?"/><Image name="photo" value="$photo_url" zoomControl="true"/>'
        '<Choices name="weather" toName="photo" choice="multiple" showInLine="true" required="true">'
        '<Choice value="cloudy" hotkey="c"/><Choice value="Rain" alias="rain" hotkey="r"/></Choices>'
        '<TextArea name="remark" toName="photo" rows="2"/></View>',
        ChoicesConfig("weather", "photo", "photo_url", ("cloudy", "rain"), True),
    ),
    "one label, which an image has or has not": (
        view('<Choice value="broken"/>', 'choice="multiple"'),
        ChoicesConfig("choice", "image", "image", ("broken",), True),
    ),
}


@pytest.mark.parametrize("case", SEVERAL_ACCEPTED)
def test_several_choices_on_an_image_are_understood(case: str) -> None:
    """`choice="multiple"`, with whatever names, hotkeys, aliases and further tags."""
    label_config, expected = SEVERAL_ACCEPTED[case]
    assert parse_labeling_config(label_config) == expected


ENTITY = "<!DOCTYPE View [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{level + 1} '{f'&a{level};' * 10}'>" for level in range(12)
)
REFUSED = {
    "a choice of another kind": view(attributes='choice="ranked"'),
    "per region": view(attributes='perRegion="true"'),
    "two choices on the image": f'<View><Image name="image" value="$image"/>'
    f'<Choices name="one" toName="image">{CAT_DOG}</Choices>'
    f'<Choices name="two" toName="image">{CAT_DOG}</Choices></View>',
    "no image": f'<View><Text name="image" value="$text"/><Choices name="c" toName="image">{CAT_DOG}</Choices></View>',
    "boxes": '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="box" toName="image"><Label value="cat"/><Label value="dog"/></RectangleLabels></View>',
    "labels from the task": view(choices="", attributes='value="$labels"'),
    "one label": view(choices='<Choice value="cat"/>'),
    "several labels per image of which none is fixed": view(choices="", attributes='choice="multiple"'),
    "several labels per region": view(attributes='choice="multiple" perRegion="true"'),
    "no label": view(choices=""),
    "an image without a field": view(image=""),
    "no control": '<View><Image name="image" value="$image"/></View>',
    "a control of an image that is not there": f'<View><Choices name="c" toName="image">{CAT_DOG}</Choices></View>',
    "broken XML": '<View><Image name="image"',
    "no XML": "cat, dog",
    "another document": "<html><body/></html>",
    "an XML declaration, which Label Studio refuses too": '<?xml version="1.0" encoding="UTF-8"?>' + view(),
    "empty": "",
    "blank": " \n",
    "a billion laughs": ENTITY + "]>" + view('<Choice value="&a12;"/><Choice value="dog"/>'),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.timeout(20)
def test_any_other_config_is_refused_with_what_is_expected(case: str) -> None:
    """The sentence ends with what this backend learns from, whatever was wrong; nothing hangs."""
    with pytest.raises(LabelingConfigError, match=r"exactly one <Choices") as caught:
        parse_labeling_config(REFUSED[case])
    assert len(str(caught.value)) < 1000


def test_no_file_is_read_into_a_label(tmp_path: Any) -> None:
    """An external entity in a labeling config opens no file of this machine."""
    secret = tmp_path / "secret.txt"
    secret.write_text("top-secret")
    label_config = f"<!DOCTYPE View [<!ENTITY f SYSTEM '{secret.as_uri()}'>]>" + view(
        '<Choice value="cat"/><Choice value="dog"/><Choice value="x">&f;</Choice>'
    )
    try:
        shown = str(parse_labeling_config(label_config))
    except LabelingConfigError as exc:
        shown = str(exc)
    assert "top-secret" not in shown


@pytest.mark.parametrize("config", [None, 3, b"<View/>", ["<View/>"]])
def test_a_config_that_is_no_text_is_refused(config: object) -> None:
    """Whatever JSON brings where the config should be, the answer is the same sentence."""
    with pytest.raises(LabelingConfigError):
        parse_labeling_config(config)  # type: ignore[arg-type]


@given(st.text(alphabet="<>/=\"' &;$ViewImageChoices\n\0é", max_size=60))
def test_any_text_is_understood_or_refused(label_config: str) -> None:
    """No text makes another exception than LabelingConfigError."""
    with contextlib.suppress(LabelingConfigError):
        parse_labeling_config(label_config)


def test_a_label_given_twice_counts_once() -> None:
    """Two `<Choice>` of the same value are one label."""
    label_config = view('<Choice value="cat"/><Choice value="dog"/><Choice value="cat"/>')
    assert parse_labeling_config(label_config).labels == ("cat", "dog")


# -- what annotations mean --------------------------------------------------------------------------------------------


def region(label: Any = "cat", *, from_name: str = "choice", kind: str = "choices") -> dict[str, Any]:
    return {"from_name": from_name, "to_name": "image", "type": kind, "value": {"choices": [label]}}


def annotation(
    number: int, *result: dict[str, Any], cancelled: bool = False, truth: bool = False, at: str | None = None
) -> Annotation:
    return Annotation(number, list(result), cancelled, truth, at or f"2026-01-01T00:00:{number:02d}.000000Z")


def tasks(*annotations: Annotation) -> list[AnnotatedTask]:
    return [AnnotatedTask(Task(7, "/data/upload/7.jpg"), list(annotations))]


def test_a_submitted_choice_is_the_label() -> None:
    """One annotation with one choice: that is the label, and the task leaves the pool."""
    labels = read_labels(CONFIG, tasks(annotation(1, region("dog"))))
    assert dict(labels.labels) == {7: "dog"}
    assert labels.answered == {7}
    assert labels.skipped == frozenset()
    assert dict(labels.ignored) == {}


def test_nothing_annotated_gives_nothing() -> None:
    """No tasks, no labels; a task without annotations (all deleted) is neither answered nor skipped."""
    for annotated in ([], tasks()):
        labels = read_labels(CONFIG, annotated)
        assert (dict(labels.labels), labels.answered, labels.skipped, dict(labels.ignored)) == ({}, set(), set(), {})


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        pytest.param([annotation(1, region("cat")), annotation(2, region("dog"))], "dog", id="latest of equals"),
        pytest.param(
            [annotation(1, region("cat"), at="2026-01-02"), annotation(2, region("dog"), at="2026-01-01")],
            "cat",
            id="latest by time, not by id",
        ),
        pytest.param(
            [annotation(2, region("dog"), at="2026"), annotation(1, region("cat"), at="2026")],
            "dog",
            id="of the same moment the higher id",
        ),
        pytest.param(
            [annotation(1, region("cat")), annotation(2, region("cat")), annotation(3, region("dog"))],
            "cat",
            id="the most frequent",
        ),
        pytest.param(
            [annotation(1, region("cat"), truth=True), annotation(2, region("dog")), annotation(3, region("dog"))],
            "cat",
            id="ground truth before all others",
        ),
        pytest.param(
            [annotation(1, region("cat"), truth=True), annotation(2, region("dog"), truth=True)],
            "dog",
            id="latest of two ground truths",
        ),
        pytest.param(
            [annotation(1, region("cat")), annotation(2, region("dog"), cancelled=True)], "cat", id="skips do not count"
        ),
        pytest.param(
            [annotation(1, region("cat")), annotation(2, region("bird")), annotation(3)],
            "cat",
            id="what cannot be read does not count",
        ),
        pytest.param(
            [annotation(1, region("x", from_name="comment", kind="textarea"), region("dog"))],
            "dog",
            id="regions of other controls do not count",
        ),
    ],
)
def test_several_annotations_give_one_label(annotations: list[Annotation], expected: str) -> None:
    """Ground truth first, then the majority, then the latest."""
    assert read_labels(CONFIG, tasks(*annotations)).labels[7] == expected


@pytest.mark.parametrize(
    ("labels", "agreed"),
    [
        (["cat"], False),
        (["cat", "cat"], True),
        (["cat", "dog"], False),
        (["dog", "cat", "cat"], True),
        (["wolf", "wolf", "cat"], False),
        ([None, None, "cat"], False),
    ],
)
def test_two_annotations_with_the_label_agree(labels: list[str | None], agreed: bool) -> None:
    """Two skips, and two of a label that is not offered, say nothing of the label that counts."""
    given = [
        Annotation(number, [region(label)] if label else [], label is None, False, f"2026-01-01T00:00:0{number}Z")
        for number, label in enumerate(labels)
    ]
    items = [AnnotatedTask(Task(5, "x"), given)]
    assert agreed_tasks(CONFIG, items, read_labels(CONFIG, items)) == ({5} if agreed else set())


def test_a_task_that_was_only_skipped_stays_in_the_pool() -> None:
    """It is neither trained on nor counted, whatever result the skip carries."""
    labels = read_labels(CONFIG, tasks(annotation(1, region("cat"), cancelled=True), annotation(2, cancelled=True)))
    assert labels.skipped == {7}
    assert labels.answered == frozenset()
    assert dict(labels.labels) == {}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ([], "annotation 3 holds no single choice for 'choice'"),
        ([region("catt")], "annotation 3 has label 'catt'; the labeling config offers 'cat', 'dog'"),
        ([{**region(), "value": {"choices": ["cat", "dog"]}}], "annotation 3 holds no single choice for 'choice'"),
        ([region(from_name="other")], "annotation 3 holds no single choice for 'choice'"),
        ([{**region(), "value": {"choices": "cat"}}], "annotation 3 holds no single choice for 'choice'"),
    ],
)
def test_an_annotation_without_usable_label_is_ignored_with_the_reason(
    result: list[dict[str, Any]], reason: str
) -> None:
    """Somebody answered the task, so it leaves the pool; why it is not trained on is said in words."""
    labels = read_labels(CONFIG, tasks(annotation(3, *result)))
    assert dict(labels.labels) == {}
    assert labels.answered == {7}
    assert dict(labels.ignored) == {7: reason}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
REGION = st.dictionaries(st.text(max_size=4), JSON, max_size=3) | st.fixed_dictionaries(
    {"from_name": st.just("choice") | JSON, "type": st.just("choices") | JSON, "value": JSON}
)
VALUED = st.builds(lambda choices: {**region(), "value": {"choices": choices}}, JSON)


@given(st.lists(st.tuples(st.lists(REGION | VALUED, max_size=3), st.booleans(), st.booleans()), max_size=4))
def test_malformed_results_never_raise(raw: list[tuple[list[dict[str, Any]], bool, bool]]) -> None:
    """Every task is exactly one of: labeled, ignored, skipped, untouched; a label is always one the config offers."""
    annotations = [
        Annotation(number, result, cancelled, truth, "2026-01-01T00:00:00Z")
        for number, (result, cancelled, truth) in enumerate(raw)
    ]
    labels = read_labels(CONFIG, tasks(*annotations))
    kinds = [7 in labels.labels, 7 in labels.ignored, 7 in labels.skipped, not raw]
    assert kinds.count(True) == 1
    assert (7 in labels.answered) == (7 in labels.labels or 7 in labels.ignored)
    assert set(labels.labels.values()) <= set(CONFIG.labels)


# -- predictions ------------------------------------------------------------------------------------------------------


def test_a_prediction_names_the_likeliest_label_with_its_confidence() -> None:
    """0.25 against 0.75: dog, with the confidence of every class beside it."""
    assert prediction_result(CONFIG, "dog", 0.75, {"cat": 0.25, "dog": 0.75}) == [
        {
            "from_name": "choice",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": ["dog"]},
            "score": 0.75,
            "meta": {"confidence": {"cat": 0.25, "dog": 0.75}},
        }
    ]


def plain(value: Any) -> bool:
    """Whether only JSON's own Python types are in it (a NumPy float64 is a float, but not this very type)."""
    if type(value) is dict:
        return all(type(key) is str and plain(item) for key, item in value.items())
    if type(value) is list:
        return all(plain(item) for item in value)
    return type(value) in (str, int, float, bool, type(None))


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=5))
def test_a_prediction_is_plain_json_even_from_numpy_numbers(probabilities: list[float]) -> None:
    """What Label Studio receives is what was meant: it survives JSON unchanged, and holds no NumPy type."""
    array = np.array(probabilities, dtype=np.float32)
    by_class = {f"label {number}": value for number, value in enumerate(array)}
    result = prediction_result(CONFIG, "label 0", array[0], by_class)
    assert plain(result)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result[0]["score"] == result[0]["meta"]["confidence"]["label 0"]


def test_a_prediction_is_read_back_as_the_label_it_names() -> None:
    """A labeler who accepts the pre-label submits exactly its result."""
    result = prediction_result(CONFIG, "cat", 0.9, {"cat": 0.9, "dog": 0.1})
    assert read_labels(CONFIG, tasks(Annotation(1, result, False, False, "2026"))).labels[7] == "cat"


# -- several labels per image -----------------------------------------------------------------------------------------

SEVERAL = ChoicesConfig("choice", "image", "image", ("cat", "dog", "bird"), several=True)


def regions(*labels: Any) -> dict[str, Any]:
    return {**region(), "value": {"choices": list(labels)}}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param([regions("dog", "cat")], ("cat", "dog"), id="two, in whatever order they were pressed"),
        pytest.param([regions("cat")], ("cat",), id="one"),
        pytest.param([], (), id="none of these: Label Studio writes no region"),
        pytest.param([regions()], (), id="a region whose choices were all taken back"),
        pytest.param([regions("cat", "cat")], ("cat",), id="one given twice"),
        pytest.param([region("x", from_name="remark", kind="textarea")], (), id="a remark alone"),
        pytest.param([regions("cat"), regions("dog")], ("cat", "dog"), id="two regions of the same control"),
    ],
)
def test_what_is_submitted_is_the_whole_set(result: list[dict[str, Any]], expected: tuple[str, ...]) -> None:
    """Labels that are not chosen are not on the image."""
    assert read_labels(SEVERAL, tasks(annotation(1, *result))).labels == {7: expected}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ([regions("cat", "catt")], "annotation 3 has label 'catt'; the labeling config offers 'cat', 'dog', 'bird'"),
        (
            [{**region(), "value": {"choices": "cat"}}],
            "annotation 3 holds a region without a list of choices for 'choice'",
        ),
        ([{**region(), "value": None}], "annotation 3 holds a region without a list of choices for 'choice'"),
    ],
)
def test_a_set_that_cannot_be_read_is_ignored_with_the_reason(result: list[dict[str, Any]], reason: str) -> None:
    """It is not taken for the rest of it, nor for none of these."""
    assert read_labels(SEVERAL, tasks(annotation(3, *result))).ignored == {7: reason}


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        pytest.param(
            [annotation(1, regions("cat", "dog")), annotation(2, regions("cat")), annotation(3, regions("dog"))],
            ("cat", "dog"),
            id="each label that most say",
        ),
        pytest.param(
            [annotation(1, regions("cat", "dog")), annotation(2, regions("cat", "bird"))],
            ("bird", "cat"),
            id="of equal numbers the last",
        ),
        pytest.param([annotation(1, regions("cat")), annotation(2)], (), id="the last says none of these"),
        pytest.param(
            [annotation(1, regions("cat")), annotation(2, regions("cat")), annotation(3, regions("dog"))],
            ("cat",),
            id="two of three against the last",
        ),
        pytest.param(
            [annotation(1, regions("cat"), truth=True), annotation(2, regions("dog")), annotation(3, regions("dog"))],
            ("cat",),
            id="ground truth before all others",
        ),
    ],
)
def test_several_sets_give_one(annotations: list[Annotation], expected: tuple[str, ...]) -> None:
    """Label by label: ground truth first, then the majority, then the latest."""
    assert read_labels(SEVERAL, tasks(*annotations)).labels[7] == expected


def test_two_equal_sets_agree() -> None:
    """In whatever order their labels were pressed; half of a set is another set."""
    given = tasks(annotation(1, regions("cat", "dog")), annotation(2, regions("dog", "cat")))
    assert agreed_tasks(SEVERAL, given, read_labels(SEVERAL, given)) == {7}
    given = tasks(annotation(1, regions("cat", "dog")), annotation(2, regions("dog")))
    assert agreed_tasks(SEVERAL, given, read_labels(SEVERAL, given)) == set()


@given(st.lists(st.tuples(st.lists(REGION | VALUED, max_size=3), st.booleans(), st.booleans()), max_size=4))
def test_malformed_sets_never_raise(raw: list[tuple[list[dict[str, Any]], bool, bool]]) -> None:
    """Every task is labeled, ignored, skipped or untouched; a set holds only labels that the config offers."""
    annotations = [
        Annotation(number, result, cancelled, truth, "2026-01-01T00:00:00Z")
        for number, (result, cancelled, truth) in enumerate(raw)
    ]
    labels = read_labels(SEVERAL, tasks(*annotations))
    kinds = [7 in labels.labels, 7 in labels.ignored, 7 in labels.skipped, not raw]
    assert kinds.count(True) == 1
    assert all(set(label) <= set(SEVERAL.labels) for label in labels.labels.values())


def test_a_predicted_set_names_its_labels_in_the_order_offered() -> None:
    """With how sure the model is of all of it, and how likely each label is."""
    by_class = {"bird": 0.1, "cat": 0.8, "dog": 0.9}
    assert prediction_result(SEVERAL, ("dog", "cat"), 0.648, by_class) == [
        {
            "from_name": "choice",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": ["cat", "dog"]},
            "score": 0.648,
            "meta": {"confidence": by_class},
        }
    ]
    assert prediction_result(SEVERAL, (), 0.9, by_class) == []


# -- several people ---------------------------------------------------------------------------------------------------


def by(person: int | None, number: int, label: str, *, truth: bool = False) -> Annotation:
    return Annotation(number, [region(label)], False, truth, f"2026-01-01T00:00:{number:02d}Z", person)


def test_of_each_person_the_last_annotation_counts() -> None:
    """One says cat three times, then dog; another says dog; a third cat: two dogs against a cat."""
    given = [by(7, 1, "cat"), by(7, 2, "cat"), by(7, 3, "cat"), by(8, 4, "dog"), by(9, 5, "cat"), by(7, 6, "dog")]
    labels = read_labels(CONFIG, tasks(*given))
    assert labels.labels == {7: "dog"}
    assert labels.several == {7: SeveralAnswers([(8, "dog"), (9, "cat"), (7, "dog")])}


def test_annotations_of_nobody_known_all_count() -> None:
    """Imported ones may say nobody: two cats against a dog that came last."""
    labels = read_labels(CONFIG, tasks(by(None, 1, "cat"), by(None, 2, "cat"), by(None, 3, "dog")))
    assert labels.labels == {7: "cat"}
    assert len(labels.several[7].answers) == 3


def test_ground_truth_stays_although_its_author_said_otherwise_later() -> None:
    """Whose it is matters as little as when it was."""
    labels = read_labels(CONFIG, tasks(by(7, 1, "cat", truth=True), by(7, 2, "dog"), by(8, 3, "dog")))
    assert labels.labels == {7: "cat"}
    assert labels.several[7].has_ground_truth


def test_one_person_s_answers_are_not_several() -> None:
    """Nor is one answer beside one that is no label."""
    empty = Annotation(2, [], False, False, "2026-01-01T00:00:02Z", 8)
    for answers in ([by(7, 1, "cat"), by(7, 2, "dog")], [by(7, 1, "cat"), empty]):
        assert read_labels(CONFIG, tasks(*answers)).several == {}
