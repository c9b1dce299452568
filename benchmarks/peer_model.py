"""The model of the peer in `benchmarks.peer`: a plain `LabelStudioMLBase` subclass as label-studio-ml 1.0.9 wants one.

Like the trainable examples of that package: an event makes `fit` download the project's annotations and train on all
of them; what it returns is given to the next model built. The head is ours, on the same embeddings. It runs in an
environment of its own, in which of this repository only `backend.learning` is used.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import requests
from label_studio_ml.model import LabelStudioMLBase

from backend.learning.features import FeatureSpace
from backend.learning.head import Head, HeadSettings, fit
from backend.learning.pool import Pool


class PeerModel(LabelStudioMLBase):
    """Choices on images whose embeddings are in a file: row i is that of task i + 1."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = None
        if self.train_output:
            kept = np.load(self.train_output["model_file"])
            space = FeatureSpace(kept["scale"], kept["centre"])
            self.head = Head(tuple(kept["classes"].tolist()), kept["weights"], kept["bias"], space, 1.0)

    def predict(self, tasks, **kwargs):
        """One prediction per task."""
        if self.head is None:
            return [{"result": [], "score": 0.0} for _ in tasks]
        embeddings = np.load(os.environ["EMBEDDINGS"], mmap_mode="r")
        probabilities = self.head.predict_proba(embeddings[[task["id"] - 1 for task in tasks]])
        answers = []
        for row in probabilities:
            choice = {"choices": [self.head.classes[int(row.argmax())]]}
            region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": choice}
            answers.append({"result": [region], "score": float(row.max())})
        return answers

    def fit(self, tasks, workdir=None, **kwargs):
        """Downloads all annotations of the event's project and trains; what the next model is built from."""
        project_id = kwargs["data"]["project"]["id"]
        url = f"{os.environ['LABEL_STUDIO_HOSTNAME']}/api/projects/{project_id}/export"
        answer = requests.get(url, headers={"Authorization": f"Token {os.environ['LABEL_STUDIO_API_KEY']}"}, timeout=60)
        answer.raise_for_status()
        labels = {
            task["id"]: task["annotations"][0]["result"][0]["value"]["choices"][0]
            for task in answer.json()
            if task["annotations"] and not task["annotations"][0]["was_cancelled"]
        }
        pool = Pool(np.load(os.environ["EMBEDDINGS"]), int(os.environ["N_DETAILS"]))
        head = fit(pool, [task_id - 1 for task_id in labels], list(labels.values()), HeadSettings()).head
        folder = Path(os.environ["MODEL_DIR"])
        model_file = folder / f"{kwargs['job_id']}-{time.time_ns()}.npz"
        np.savez(
            model_file, classes=np.array(head.classes), weights=head.weights, bias=head.bias,
            scale=head.space.scale, centre=head.space.centre,
        )  # fmt: skip
        # For the benchmark to read: which version this is, from how many labels, and when it was there.
        version = {"job_id": kwargs["job_id"], "labels": len(labels), "made_at": time.time()}
        model_file.with_suffix(".json").write_text(json.dumps(version))
        return {"model_file": str(model_file), "labels": len(labels)}
