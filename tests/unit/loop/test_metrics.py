"""/metrics: what is served is what the documents name, in Prometheus' own format, the same from every process."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import CREATED, LABEL_CONFIG, World, retrain, rgb
from prometheus_client.parser import text_string_to_metric_families

from backend import __version__
from backend.adapters.jobs import HISTOGRAM_BOUNDS
from backend.errors import LabelStudioUnreachableError, RedisUnavailableError
from backend.loop.metrics import METRICS, RequestCounts
from backend.schema import Progress

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
Samples = dict[tuple[str, ...], float]


def families(world: World) -> list[Any]:
    return list(text_string_to_metric_families(world.services.metrics.text().decode()))


def samples(world: World) -> Samples:
    """(name, values of its labels in the order of METRICS) → value."""
    order = {metric.name: metric.labels for metric in METRICS}
    found = {}
    for family in families(world):
        for sample in family.samples:
            name = re.sub("_(bucket|sum|count)$", "", sample.name)
            names = order.get(sample.name, order.get(name, ()))
            values = [sample.labels[label] for label in (*names, *(["le"] if "le" in sample.labels else []))]
            found[(sample.name, *values)] = sample.value
    return found


@pytest.fixture
def project(world: World) -> World:
    """Project 3 with a model, one broken image and one that may come back, something failing, requests counted."""
    world.label_studio.add_project(3, [rgb(250, 0), rgb(0, 250), rgb(200, 0), rgb(0, 200), "broken:x", rgb(1, 1)])
    world.images.away.add(rgb(1, 1))
    world.registry.register(3, CREATED, LABEL_CONFIG)
    world.embed_all(3)
    world.services.embedder.plan(3)
    for task_id, label in ((1, "cat"), (2, "dog")):
        world.label_studio.annotate(3, task_id, label)
        world.services.events.handle(
            3, "ANNOTATION_CREATED", world.label_studio.event(3, "ANNOTATION_CREATED", task_id=task_id)
        )
    retrain(world, 3)
    world.jobs.count("jobs retrain done", 2)
    world.jobs.set_progress(3, Progress(2, 6))
    world.services.retries.failed(3, "prune", LabelStudioUnreachableError("away"))
    world.services.request_counts.add("POST", "/webhook", 201, 0.03)
    world.services.request_counts.flush()
    return world


# -- names and format -------------------------------------------------------------------------------------------------


def test_every_metric_of_the_table_is_served_with_its_kind_labels_and_meaning(project: World) -> None:
    """And none beside them; what is known of no project here has no sample."""
    served = {family.name: family for family in families(project)}
    named = {
        metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name: metric for metric in METRICS
    }
    assert set(served) == set(named)
    for name, metric in named.items():
        assert served[name].type == metric.kind
        assert served[name].documentation == metric.meaning
        for sample in served[name].samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)
    without = {name for name, family in served.items() if not family.samples}
    assert without <= {
        f"active_learning_{name}" for name in ("accuracy", "labels_needed", "embedding_images_per_second")
    }


def test_names_keep_prometheus_rules(project: World) -> None:
    """Lower case, `_total` for counters and nothing else, base units, no metric that ends as a histogram's parts do."""
    for metric in METRICS:
        assert re.fullmatch("[a-z][a-z0-9_]*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not metric.name.endswith(("_count", "_sum", "_bucket"))
        assert not re.search("_(ms|milliseconds|minutes|hours|kb|mb|percent)(_|$)", metric.name)
        assert metric.name.startswith(("active_learning_", "http_request"))
        assert metric.meaning
        assert not metric.meaning.endswith(".")


def test_histograms_are_whole(project: World) -> None:
    """Buckets never fall, the last is the count, the sum is there."""
    for family in families(project):
        if family.type != "histogram":
            continue
        by_labels: dict[tuple[str, ...], list[float]] = {}
        counts = {}
        for sample in family.samples:
            key = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
            if sample.name.endswith("_bucket"):
                by_labels.setdefault(key, []).append(sample.value)
            elif sample.name.endswith("_count"):
                counts[key] = sample.value
        assert by_labels
        for key, buckets in by_labels.items():
            assert buckets == sorted(buckets)
            assert len(buckets) == len(HISTOGRAM_BOUNDS) + 1
            assert buckets[-1] == counts[key]


# -- values -----------------------------------------------------------------------------------------------------------


def test_the_figures_of_a_project(project: World) -> None:
    """Version, labels, images and failures as they are in data folder and Redis."""
    found = samples(project)
    record = project.registry.published_record(3)
    assert record is not None
    expected = {
        "labels_used": 2,
        "pool_size": record.pool_size,
        "versions": 1,
        "version_number": 1,
        "version_timestamp_seconds": datetime.fromisoformat(record.created_at).timestamp(),
        "images": 6,
        "images_embedded": 2,
    }
    assert {name: found[f"active_learning_{name}", "3"] for name in expected} == expected
    assert found["active_learning_image_failures", "3", "permanent"] == 1
    assert found["active_learning_image_failures", "3", "transient"] == 1
    assert found["active_learning_job_failures", "3", "prune"] == 1
    assert found["active_learning_jobs_total", "retrain", "done"] == 2
    assert found["active_learning_redis_up",] == 1
    builds = [sample for family in families(project) for sample in family.samples if sample.name.endswith("build_info")]
    assert [sample.labels["version"] for sample in builds] == [__version__]
    assert abs(found["active_learning_last_label_timestamp_seconds", "3"] - project.jobs.now()) < 120


def test_the_release_is_that_of_the_project_file() -> None:
    """Two places name it."""
    assert f'\nversion = "{__version__}"\n' in (ROOT / "pyproject.toml").read_text()


def test_only_webhooks_about_labels_are_labels(project: World) -> None:
    """The journal also holds marks of our own: the moment stays; a journal with nothing else has none."""
    before = samples(project)["active_learning_last_label_timestamp_seconds", "3"]
    project.jobs.record_event(3, {"read": "everything"})
    assert samples(project)["active_learning_last_label_timestamp_seconds", "3"] == before
    project.registry.register(4, CREATED, LABEL_CONFIG)
    project.jobs.record_event(4, {"read": "nothing"})
    assert ("active_learning_last_label_timestamp_seconds", "4") not in samples(project)


def test_an_image_that_comes_back_is_no_failure_any_more(project: World) -> None:
    """The reconciliation tries passing failures again; the plan after it counts anew."""
    project.images.away.clear()
    project.services.embedder.forget(3, [6])
    project.embed_all(3)
    project.services.embedder.plan(3)
    found = samples(project)
    assert found["active_learning_image_failures", "3", "transient"] == 0
    assert found["active_learning_image_failures", "3", "permanent"] == 1


def test_without_redis_what_is_on_disk_is_served(project: World, dead_redis_url: str) -> None:
    """And that Redis is away, instead of zeros that look like figures."""
    found = samples(project.again(redis_url=dead_redis_url))
    assert found["active_learning_redis_up",] == 0
    assert found["active_learning_labels_used", "3"] == 2
    assert ("active_learning_workers",) not in found


# -- requests ---------------------------------------------------------------------------------------------------------


def test_requests_of_all_processes_add_up(project: World) -> None:
    """Two processes, each with counts of its own: every process serves the sum."""
    first, second = (RequestCounts(project.again().jobs) for _ in range(2))
    first.add("POST", "/webhook", 201, 0.004)
    first.add("POST", "/webhook", 503, 99.0)
    second.add("POST", "/webhook", 201, 0.3)
    first.flush()
    second.flush()
    found = samples(project)
    assert found["http_requests_total", "POST", "/webhook", "201"] == 3
    assert found["http_requests_total", "POST", "/webhook", "503"] == 1
    name = "http_request_duration_seconds"
    assert found[f"{name}_bucket", "POST", "/webhook", "0.005"] == 1
    assert found[f"{name}_bucket", "POST", "/webhook", "0.05"] == 2
    assert found[f"{name}_bucket", "POST", "/webhook", "60.0"] == 3
    assert found[f"{name}_bucket", "POST", "/webhook", "+Inf"] == 4
    assert found[f"{name}_sum", "POST", "/webhook"] == pytest.approx(99.334)


def test_counts_wait_for_a_redis_that_is_away(project: World, dead_redis_url: str) -> None:
    """Nothing is lost and nothing is counted twice."""
    away = project.again(redis_url=dead_redis_url)
    counts = RequestCounts(away.jobs)
    counts.add("GET", "/predict", 200, 0.01)
    for _ in range(2):
        with pytest.raises(RedisUnavailableError):
            counts.flush()
    counts.add("GET", "/predict", 200, 0.01)
    counts._jobs = project.jobs
    counts.flush()
    counts.flush()
    assert samples(project)["http_requests_total", "GET", "/predict", "200"] == 2


# -- documents --------------------------------------------------------------------------------------------------------


def names_in(expression: str) -> set[str]:
    """Metrics that a PromQL expression names, without what a histogram adds to its name."""
    found = set(re.findall(r"\b(?:active_learning|http_request)\w*", re.sub(r'"[^"]*"', "", expression)))
    known = {metric.name for metric in METRICS if metric.kind == "histogram"}
    return {stem if (stem := re.sub("_(bucket|sum|count)$", "", name)) in known else name for name in found}


def check_expression(expression: str) -> None:
    """Every metric exists, and every label that is selected or grouped by is one of the metrics'."""
    known = {metric.name: metric for metric in METRICS}
    names = names_in(expression)
    assert names, expression
    assert names <= known.keys(), names - known.keys()
    labels = {"le", "job", "instance", *(label for name in names for label in known[name].labels)}
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = re.findall(r"\b(?:by|without|on|ignoring|group_left)\s*\(([^)]*)\)", expression)
    used = {*selected, *(name.strip() for group in grouped for name in group.split(",") if name.strip())}
    assert used <= labels, (expression, used - labels)


def test_the_table_of_the_document_is_what_is_served() -> None:
    """Name, kind, labels, meaning, in the order served."""
    text = (DOCS / "monitoring.md").read_text()
    table = text.split("<!-- metrics -->")[1].split("<!-- /metrics -->")[0].strip().splitlines()[2:]
    assert table == [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in METRICS
    ]


def test_the_dashboard_names_metrics_that_exist() -> None:
    """Every panel asks for something, and for nothing that is not served; no two panels overlap."""
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    queries = []
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["targets"], panel["title"]
        queries += [target["expr"] for target in panel["targets"]]
    queries += [re.sub(r"^label_values\((.*),\s*\w+\)$", r"\1", item["query"]["query"])
                for item in dashboard["templating"]["list"] if item["type"] == "query"]  # fmt: skip
    assert len(queries) > 15
    for query in queries:
        check_expression(query.replace("$__rate_interval", "5m").replace("$project", "3"))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_alerts_name_metrics_that_exist() -> None:
    """Each has a sentence that says what to do, and a time to wait."""
    groups = yaml.safe_load((DOCS / "prometheus-alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 8
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        if rule["expr"] != 'up{job="active-learning"} == 0':
            check_expression(rule["expr"])
        assert re.fullmatch("[0-9]+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(rule["annotations"]["summary"]) > 10
        assert len(rule["annotations"]["description"]) > 30


def test_the_scrape_configuration_asks_what_is_served() -> None:
    """The path, credentials from a file, and the alert rules beside it."""
    content = yaml.safe_load((DOCS / "prometheus.yml").read_text())
    assert content["rule_files"] == ["prometheus-alerts.yml"]
    (job,) = content["scrape_configs"]
    assert job["job_name"] == "active-learning"
    assert job["metrics_path"] == "/metrics"
    assert "password_file" in job["basic_auth"]
    assert "password" not in job["basic_auth"]
