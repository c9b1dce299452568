"""What run.sh does beside the commands: answers in place of people, the check of the predictions, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.demo import write_digits
from backend.formats.lightly_predictions import check_predictions, read_predictions
from backend.lightly import Tags
from backend.loop.folder import classes_of

TUTORIAL = ((60.0, 19.027), (90.0, 44.248))
"""Training and validation accuracy that the tutorial prints after 30 and after 60 labels."""


def answers(cache: Path, tag: str, target: Path) -> None:
    """A file as Label Studio exports JSON-MIN, for a tag's images, answered by the classes in their names."""
    names = Tags((), cache / "tags").get(tag)
    truth = classes_of(names)
    rows = [
        {"image": f"/data/local-files/?d={target.parent.name}/samples_for_labelling/{quote(name)}", "id": number,
         "choice": truth[name], "annotator": 1, "annotation_id": number}
        for number, name in enumerate(names, start=1)
    ]  # fmt: skip
    target.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(rows)} answers, taken from the classes in the images' names")


def check(folder: Path) -> None:
    """Ends with exit code 1 and what is wrong, unless the predictions are as Lightly's format has it."""
    problems = check_predictions(folder)
    if problems:
        raise SystemExit("\n".join(problems))
    (task_name,) = json.loads((folder / ".lightly" / "predictions" / "tasks.json").read_text(encoding="utf-8"))
    found = read_predictions(folder, task_name)
    print(f"{folder}/.lightly/predictions: {len(found.names)} predictions of {', '.join(found.classes)}, as the format")


def table(files: list[Path]) -> None:
    """The tutorial's accuracies beside ours."""
    print(f"{'labels':>8}{'tutorial: training':>22}{'validation':>12}{'ours: training':>18}{'validation':>12}")
    for (training, validation), file in zip(TUTORIAL, files, strict=True):
        ours = json.loads(file.read_text(encoding="utf-8"))
        print(
            f"{ours['n_labels']:>8}{training:>22.1f}{validation:>12.1f}"
            f"{100 * ours['training_accuracy']:>18.1f}{100 * ours['validation_accuracy']:>12.1f}"
        )


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "digits":
        write_digits(Path(arguments[0]))
    elif name == "answers":
        answers(Path(arguments[0]), arguments[1], Path(arguments[2]))
    elif name == "check":
        check(Path(arguments[0]))
    elif name == "table":
        table([Path(argument) for argument in arguments])
    else:
        raise SystemExit(f"there is no step {name!r}; the steps are digits, answers, check and table")
