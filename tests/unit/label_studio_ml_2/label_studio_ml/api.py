"""The routes: each builds a model for the project of the request and calls it; training events call `fit` at once."""

from __future__ import annotations

from typing import Any

from flask import Flask, jsonify, request

from label_studio_ml.model import LabelStudioMLBase


def init_app(model_class: type[LabelStudioMLBase]) -> Flask:
    if not issubclass(model_class, LabelStudioMLBase):
        raise ValueError("not a model of this release")
    app = Flask("label_studio_ml")

    def predict() -> Any:
        body = request.json
        params = dict(body.get("params", {}))
        context = params.pop("context", {})
        project_id = str(body.get("project")).split(".", 1)[0]
        model = model_class(project_id=project_id, label_config=body.get("label_config"))
        return jsonify({"results": model.predict(body.get("tasks"), context=context, **params)})

    def setup() -> Any:
        body = request.json
        model = model_class(project_id=body["project"].split(".", 1)[0], label_config=body.get("schema"))
        if body.get("extra_params"):
            model.set_extra_params(body["extra_params"])
        return jsonify({"model_version": model.get("model_version")})

    def webhook() -> Any:
        body = request.json
        event = body.pop("action")
        if event not in LabelStudioMLBase.TRAIN_EVENTS:
            return jsonify({"status": "Unknown event"}), 200
        model = model_class(str(body["project"]["id"]), label_config=body["project"]["label_config"])
        return jsonify({"result": model.fit(event, body), "status": "ok"}), 201

    def health() -> Any:
        return jsonify({"status": "UP", "model_class": model_class.__name__})

    app.add_url_rule("/predict", view_func=predict, methods=["POST"])
    app.add_url_rule("/setup", view_func=setup, methods=["POST"])
    app.add_url_rule("/webhook", view_func=webhook, methods=["POST"])
    app.add_url_rule("/health", view_func=health)
    return app
