"""Label Studio, through label-studio-sdk: the only module that knows its routes.

The SDK gives transport, authentication (legacy and personal access tokens) and retries. Its clients of each route are
not used: their response models cost more than the request at thousands of rows, and to load them takes three seconds of
processor time and 150 MB more than the transport does.
"""

from __future__ import annotations

import json
import logging
import mimetypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx

from backend.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnreachableError,
    ProjectNotFoundError,
)
from backend.schema import AnnotatedTask, Annotation, AnswerEvent, Project, QueueEntry, Suggestion, Task

if TYPE_CHECKING:
    from label_studio_sdk.core.client_wrapper import SyncClientWrapper
    from label_studio_sdk.core.request_options import RequestOptions

logger = logging.getLogger(__name__)

TASKS_PER_PAGE = 1000
"""Tasks per request when a project is listed: about a second of Label Studio's time."""

REQUEST_TIMEOUT_S = 60.0
"""Longest wait for one answer; listing a page of a large project on SQLite takes seconds."""

BULK_TIMEOUT_S = 1800.0
"""The same for what a person asks for and waits for: an export, or the end of a version's predictions (8 ms each)."""

SUGGESTIONS_PER_REQUEST = 1000
"""Suggestions per request: a few seconds of Label Studio's time."""

UNCERTAINTY_SAMPLING = "Uncertainty sampling"
"""The value of `project.sampling` that orders the queue by prediction score."""

SEQUENTIAL_SAMPLING = "Sequential sampling"
"""The value that goes by the tasks' numbers, whatever they score."""

WEBHOOK_ACTIONS = (
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
)
"""The actions that change what the model should know.

Not PROJECT_UPDATED: every version is activated by a PATCH, which would tell of itself before it is answered (20 ms at
1,000 tasks, 0.3 s at 100,000, for Label Studio counts the project for it). Another labeling config comes with the next
label, and is found by the comparison within a minute.
"""

_COUNTS = ("task_number", "total_annotations_number", "skipped_annotations_number")
_PROJECT_FIELDS = "id,title,created_at,label_config,model_version,sampling,show_collab_predictions,task_number"
"""What is asked of a project; every count not asked for spares a look at all of its tasks."""

_ANNOTATED = {
    "filters": {
        "conjunction": "or",
        "items": [
            {"filter": f"filter:tasks:{column}", "operator": "greater", "type": "Number", "value": 0}
            for column in ("total_annotations", "cancelled_annotations")
        ],
    }
}

MAX_EVENT_CHARS = 64_000
"""Longest JSON of a webhook's answers that is kept until they are trained on; of a longer one only that it came."""

# `include` names the fields of tasks and of the annotations inside them alike (data_manager/serializers.py).
_ANNOTATION_FIELDS = "id,data,annotations,result,was_cancelled,ground_truth,updated_at,completed_by"


class LabelStudioClient:
    """One Label Studio, seen with one token."""

    def __init__(self, url: str, token: str, *, timeout_s: float = REQUEST_TIMEOUT_S, n_retries: int = 2) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        self._n_retries = n_retries

    # -- who and what ---------------------------------------------------------------------------------------------

    def whoami(self) -> Mapping[str, Any]:
        """The user the token belongs to. Raises LabelStudioAuthError or LabelStudioUnreachableError."""
        answer: Mapping[str, Any] = self._call("GET", "api/current-user/whoami")
        return answer

    def server_version(self) -> str:
        """Label Studio's release, such as '1.23.2'."""
        answer = self._call("GET", "api/version")
        return str(answer.get("release") or answer.get("label-studio-os-package", {}).get("version") or "unknown")

    def token_kind(self) -> str:
        """'personal access token' or 'legacy token', told from the token's form."""
        return "personal access token" if self._token.count(".") == 2 else "legacy token"

    def auth_headers(self) -> dict[str, str]:
        """The Authorization header for a plain request to this Label Studio; refreshes a personal token's session."""
        try:
            headers = self._sdk.get_headers()
        except Exception as exc:
            raise self._translate(exc, "GET", "api/token/refresh") from exc
        return {"Authorization": headers["Authorization"]}

    # -- projects -------------------------------------------------------------------------------------------------

    def project(self, project_id: int) -> Project:
        """The project's settings. Raises ProjectNotFoundError."""
        path, params = f"api/projects/{project_id}/", {"include": _PROJECT_FIELDS}
        return _project(self._call("GET", path, params=params, expects=("id",)))

    def projects(self) -> list[Project]:
        """All projects the token may see."""
        found: list[Project] = []
        page = 1
        while True:
            answer = self._call(
                "GET", "api/projects/", params={"page": page, "page_size": 100}, expects=("results", "count")
            )
            found.extend(_project(raw) for raw in answer["results"])
            if len(found) >= answer["count"] or not answer["results"]:
                return found
            page += 1

    def create_project(self, title: str, label_config: str) -> Project:
        """A new project; the title needs three characters."""
        body = {"title": title, "label_config": label_config}
        return _project(self._call("POST", "api/projects/", body=body, expects=("id",)))

    def update_project(self, project_id: int, **changes: Any) -> None:
        """Changes settings of the project by Label Studio's own names."""
        self._call("PATCH", f"api/projects/{project_id}/", body=changes)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def tasks(self, project_id: int, image_field: str, *, fields: Sequence[str] = ()) -> list[Task]:
        """All tasks with the reference to their image, unresolved as it stands in the data, and further `fields`."""
        found: list[Task] = []
        while True:
            page = self.tasks_after(project_id, image_field, found[-1].id if found else 0, fields=fields)
            found += page
            if len(page) < TASKS_PER_PAGE:
                return found

    def tasks_after(self, project_id: int, image_field: str, task_id: int, *, fields: Sequence[str] = ()) -> list[Task]:
        """The first `TASKS_PER_PAGE` of the tasks with larger ids, ascending; fewer when there are no more.

        Unlike pages by number, they leave nothing out when tasks are deleted between two requests.
        """
        later = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": task_id}
        query = {"filters": {"conjunction": "and", "items": [later]}, "ordering": ["tasks:id"]}
        answer = self._page(project_id, {"include": "id,data", "fields": "task_only", "query": json.dumps(query)})
        return [_task(raw, image_field, fields) for raw in answer["tasks"]]

    def task(self, project_id: int, image_field: str, task_id: int) -> Task | None:
        """One task with the reference to its image, unresolved; None if the project has none of that id."""
        wanted = {"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": task_id}
        query = json.dumps({"filters": {"conjunction": "and", "items": [wanted]}})
        answer = self._page(project_id, {"include": "id,data", "fields": "task_only", "page_size": 1, "query": query})
        return next((_task(raw, image_field, ()) for raw in answer["tasks"] if raw["id"] == task_id), None)

    def annotated_tasks(self, project_id: int, image_field: str, *, fields: Sequence[str] = ()) -> list[AnnotatedTask]:
        """All tasks with at least one submitted or skipped annotation, with these annotations (no drafts).

        `fields` names further fields of the tasks' data to keep; they cost no request, for the answer holds them.

        The list goes by a counter that Label Studio keeps beside each task, and that stays at 0 when predictions of a
        task come in just while it is labeled (data_import/api.py counts first and writes later). Fewer annotations
        than the project has are therefore not believed; its export goes by the annotations themselves.
        """
        names = ("total_annotations_number", "skipped_annotations_number")
        counts = self._call("GET", f"api/projects/{project_id}/", params={"include": ",".join(("id", *names))})
        n_annotations = sum(int(counts.get(name) or 0) for name in names)
        params = {"include": _ANNOTATION_FIELDS, "fields": "all", "query": json.dumps(_ANNOTATED)}
        found = [_annotated_task(raw, image_field, fields) for raw in self._pages(project_id, params)]
        n_found = sum(len(item.annotations) for item in found)
        if n_found >= n_annotations:
            return found
        logger.info(
            "Label Studio lists %d of %d annotations project=%d; all are read from its export",
            n_found, n_annotations, project_id,
        )  # fmt: skip
        params = {"exportType": "JSON", "download_all_tasks": "false"}
        exported = self._call("GET", f"api/projects/{project_id}/export", params=params)
        return [_annotated_task(raw, image_field, fields) for raw in exported]

    def change_mark(self, project_id: int) -> str:
        """A text that changes whenever a task or annotation is added, changed or deleted (seen to: 1.23.2).

        Two small requests, however large the project; predictions do not change it.
        """
        counts = {"include": ",".join(("id", *_COUNTS))}
        project = self._call("GET", f"api/projects/{project_id}/", params=counts, expects=("id",))
        latest = self._call(
            "GET",
            "api/tasks/",
            params={
                "project": project_id,
                "page_size": 1,
                "fields": "task_only",
                "include": "id,updated_at",
                "query": json.dumps({"ordering": ["-tasks:updated_at"]}),
            },
            expects=("tasks",),
        )
        return json.dumps([[project.get(name) for name in _COUNTS], latest["tasks"]])

    @staticmethod
    def n_annotations_at(mark: str) -> int | None:
        """Annotations, submitted and skipped, that a project had at a mark of `change_mark`; None if it is no mark."""
        try:
            _, submitted, skipped = json.loads(mark)[0]
            return int(submitted) + int(skipped)
        except (ValueError, LookupError, TypeError):
            return None

    def changed_tasks(
        self, project_id: int, image_field: str, *, before: str, now: str, fields: Sequence[str] = ()
    ) -> list[AnnotatedTask] | None:
        """What changed between two marks of `change_mark`: tasks as they are now, with all their annotations.

        None if that would not tell all (tasks were added or deleted) or would be more than a page.
        """
        try:
            (counts, latest), (counts_now, _) = json.loads(before), json.loads(now)
            n_tasks, n_tasks_now, since = counts[0], counts_now[0], str(latest[0]["updated_at"])
        except (ValueError, LookupError, TypeError):  # a mark of another release, or of a project without tasks
            return None
        if n_tasks != n_tasks_now:
            return None
        column = "filter:tasks:updated_at"
        changed = {"filter": column, "operator": "greater_or_equal", "type": "Datetime", "value": since}
        query = json.dumps({"filters": {"conjunction": "and", "items": [changed]}})
        answer = self._page(project_id, {"include": _ANNOTATION_FIELDS, "fields": "all", "query": query})
        if answer["total"] > len(answer["tasks"]):
            return None
        return [_annotated_task(raw, image_field, fields) for raw in answer["tasks"]]

    def export(self, project_id: int, export_type: str) -> bytes:
        """The labeled tasks as a file of Label Studio's, by its own name for the format: JSON, JSON_MIN, CSV, TSV, …"""
        path, params = f"api/projects/{project_id}/export", {"exportType": export_type, "download_all_tasks": "false"}
        content: bytes = self._ask("GET", path, params=params, timeout_s=BULK_TIMEOUT_S).content
        return content

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Adds tasks, each `{"data": {field: reference}}`."""
        self._call("POST", f"api/projects/{project_id}/import", body=list(tasks), params={"return_task_ids": "false"})

    def upload_image(self, project_id: int, name: str, content: bytes) -> str:
        """Keeps an image in the project's uploads, without a task for it; the reference that a task's data may hold."""
        path = f"api/projects/{project_id}/import"
        files = {"file": (name, content, mimetypes.guess_type(name)[0] or "application/octet-stream")}
        answer = self._ask("POST", path, params={"commit_to_project": "false"}, files=files).json()
        kept = answer.get("file_upload_ids") if isinstance(answer, dict) else None
        if not kept:
            raise self._not_label_studio(f"POST {path} answered without 'file_upload_ids'")
        params = {"ids": json.dumps(kept)}
        for item in self._call("GET", f"api/projects/{project_id}/file-uploads", params=params):
            if item["id"] == kept[0]:
                return f"/data/{item['file']}"
        raise LabelStudioError(
            f"Label Studio took {name!r} and does not find it again; look at its media folder and log, then try again"
        )

    def _page(self, project_id: int, params: Mapping[str, str | int]) -> Mapping[str, Any]:
        """A page of the project's tasks, references unresolved."""
        shared = {"project": project_id, "page_size": TASKS_PER_PAGE, "resolve_uri": "false"}
        answer: Mapping[str, Any] = self._call(
            "GET", "api/tasks/", params={**shared, **params}, expects=("tasks", "total")
        )
        return answer

    def _pages(self, project_id: int, params: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        page = 1
        seen = 0
        while True:
            answer = self._page(project_id, {"page": page, **params})
            yield from answer["tasks"]
            seen += len(answer["tasks"])
            if not answer["tasks"] or seen >= answer["total"]:
                return
            page += 1

    # -- predictions and the queue --------------------------------------------------------------------------------

    def push_predictions(self, project_id: int, version: str, entries: Sequence[QueueEntry]) -> None:
        """Adds one prediction per entry under `version`; never twice, for Label Studio would average the scores."""
        predictions = [
            {
                "task": entry.task_id,
                "result": list(entry.result),
                "score": entry.shown_score,
                "model_version": version,
            }
            for entry in entries
        ]
        self._call("POST", f"api/projects/{project_id}/import/predictions", body=predictions)

    def activate_version(self, project_id: int, version: str) -> None:
        """Makes Label Studio order its queue by this version's scores; refused unless predictions of it exist."""
        # `include` spares counting everything in the project for an answer that is not read.
        self._call("PATCH", f"api/projects/{project_id}/", body={"model_version": version}, params={"include": "id"})

    def prediction_counts(self, project_id: int) -> dict[str, int]:
        """Model version → number of predictions Label Studio holds of it."""
        answer = self._call("GET", f"api/projects/{project_id}/model-versions/")
        return {str(version): int(count) for version, count in answer.items() if version is not None}

    def delete_predictions(self, project_id: int, version: str) -> None:
        """Deletes all predictions of one version, about 8 ms each."""
        self._call("DELETE", f"api/projects/{project_id}/model-versions/", body={"model_version": version})

    def replace_suggestions(
        self, project_id: int, version: str, suggestions: Sequence[Suggestion], advance: Callable[[int], None]
    ) -> int:
        """Makes these the predictions of a version that is none of the service's; how many it had before.

        `advance` is called with the number that is there. An error on the way leaves some of them; again, all are.
        """
        n_before = self.prediction_counts(project_id).get(version, 0)
        if n_before:
            path = f"api/projects/{project_id}/model-versions/"
            self._call("DELETE", path, body={"model_version": version}, timeout_s=BULK_TIMEOUT_S)
        for start in range(0, len(suggestions), SUGGESTIONS_PER_REQUEST):
            part = suggestions[start : start + SUGGESTIONS_PER_REQUEST]
            predictions = [
                {
                    "task": item.task_id,
                    "result": list(item.result),
                    "model_version": version,
                    **({} if item.score is None else {"score": item.score}),
                }
                for item in part
            ]
            path = f"api/projects/{project_id}/import/predictions"
            self._call("POST", path, body=predictions, timeout_s=BULK_TIMEOUT_S)
            advance(start + len(part))
        return n_before

    # -- connection -----------------------------------------------------------------------------------------------

    def backends(self, project_id: int) -> list[Mapping[str, Any]]:
        """The ML backends connected to the project; Label Studio asks each for its health before it answers."""
        answer: list[Mapping[str, Any]] = self._call("GET", "api/ml/", params={"project": project_id})
        return answer

    def save_backend(self, project_id: int, backend_id: int | None, **values: Any) -> None:
        """Creates (backend_id None) or changes an ML backend; Label Studio calls its /health and /setup first."""
        body = {"project": project_id, **values}
        if backend_id is None:
            self._call("POST", "api/ml/", body=body)
        else:
            self._call("PATCH", f"api/ml/{backend_id}", body=body)

    def delete_backend(self, backend_id: int) -> None:
        """Disconnects an ML backend; its webhook stays."""
        self._call("DELETE", f"api/ml/{backend_id}")

    def webhooks(self, project_id: int) -> list[Mapping[str, Any]]:
        """The project's webhooks."""
        answer: list[Mapping[str, Any]] = self._call("GET", "api/webhooks/", params={"project": project_id})
        return [item for item in answer if item.get("project") == project_id]

    def save_webhook(self, project_id: int, webhook_id: int | None, **values: Any) -> None:
        """Creates (webhook_id None) or changes a webhook."""
        if webhook_id is None:
            self._call("POST", "api/webhooks/", body={"project": project_id, **values})
        else:
            self._call("PATCH", f"api/webhooks/{webhook_id}/", body=values)

    def delete_webhook(self, webhook_id: int) -> None:
        """Deletes a webhook."""
        self._call("DELETE", f"api/webhooks/{webhook_id}/")

    def local_storages(self, project_id: int) -> list[Mapping[str, Any]]:
        """The project's source storages of local files, each with `id`, `path` and `title`."""
        answer: list[Mapping[str, Any]] = self._call("GET", "api/storages/localfiles/", params={"project": project_id})
        return answer

    def save_local_storage(self, project_id: int, title: str, path: str, regex_filter: str) -> int:
        """A local-files source storage of the project for `path`, created or made to have this filter; its id."""
        wanted = {"path": path, "regex_filter": regex_filter, "recursive_scan": True}
        for storage in self.local_storages(project_id):
            if storage["path"] == path:
                if any(storage.get(name) != value for name, value in wanted.items()):
                    # With the path, for Label Studio takes a change without it for a storage without it.
                    self._call("PATCH", f"api/storages/localfiles/{storage['id']}", body=wanted)
                return int(storage["id"])
        body = {"project": project_id, "title": title, "use_blob_urls": True, **wanted}
        return int(self._call("POST", "api/storages/localfiles/", body=body)["id"])

    def save_local_target(self, project_id: int, title: str, path: str) -> int:
        """A local-files target storage of the project that saves annotations to `path`, created unless it is there."""
        for storage in self._call("GET", "api/storages/export/localfiles", params={"project": project_id}):
            if storage["path"] == path:
                return int(storage["id"])
        body = {"project": project_id, "title": title, "path": path}
        return int(self._call("POST", "api/storages/export/localfiles", body=body)["id"])

    def sync_local_storage(self, storage_id: int, *, is_target: bool = False) -> Mapping[str, Any]:
        """Begins to make tasks of a source storage's new files, or to save all annotations to a target storage.

        The state afterwards, with `status`, `last_sync_count` and `traceback`: done, unless Label Studio has a Redis.
        """
        path = f"{_local_storages(is_target)}/{storage_id}/sync"
        return dict(self._call("POST", path, expects=("status",), timeout_s=BULK_TIMEOUT_S))

    def local_storage(self, storage_id: int, *, is_target: bool = False) -> Mapping[str, Any]:
        """The state of a local-files storage, as of `sync_local_storage`."""
        return dict(self._call("GET", f"{_local_storages(is_target)}/{storage_id}", expects=("status",)))

    # -- transport ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the connections; the client must not be used afterwards."""
        self._http.close()

    @cached_property
    def _http(self) -> httpx.Client:
        # Label Studio's own server sends an answer in two parts. On a connection that is kept, the second waits 40 ms
        # for this side to acknowledge the first (Nagle's algorithm against delayed acknowledgement); a new connection
        # takes less than 1 ms. Behind https stands another server, and a new connection takes a handshake.
        limits = httpx.Limits(max_keepalive_connections=None if self.url.startswith("https:") else 0)
        return httpx.Client(timeout=self._timeout_s, follow_redirects=True, limits=limits)

    @cached_property
    def _sdk(self) -> SyncClientWrapper:
        from label_studio_sdk.core.client_wrapper import SyncClientWrapper

        if not self._token:
            raise LabelStudioAuthError(
                "LABEL_STUDIO_TOKEN is empty; copy a token from Label Studio (Account & Settings) and set it"
            )
        try:
            # The slash keeps a path in the address when the SDK puts the route of the token refresh behind it.
            return SyncClientWrapper(base_url=f"{self.url}/", api_key=self._token, httpx_client=self._http)
        except Exception as exc:  # the SDK refuses an expired personal token here
            raise self._translate(exc, "GET", "") from exc

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        expects: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Any:
        """One request; `expects` names what the answer, then a JSON object, must hold."""
        response = self._ask(method, path, params=params, body=body, timeout_s=timeout_s)
        if not response.content and not expects:
            return None
        try:
            answer = response.json()
        except ValueError as exc:
            raise self._not_label_studio(f"{method} {path} answered no JSON ({response.text[:80]!r})") from exc
        if expects and not (isinstance(answer, dict) and all(name in answer for name in expects)):
            raise self._not_label_studio(f"{method} {path} answered without {' and '.join(map(repr, expects))}")
        return answer

    def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """The answer to one request, if it is none of refusal."""
        sdk = self._sdk
        # A POST creates something, and an answer of 500 may come after it was: sent again it would be there twice.
        options: RequestOptions = {"max_retries": 0 if method == "POST" else self._n_retries}
        if timeout_s is not None:
            options["timeout_in_seconds"] = int(timeout_s)

        def request() -> httpx.Response:
            try:
                return sdk.httpx_client.request(
                    path,
                    method=method,
                    params=dict(params) if params else None,
                    json=body,
                    files=dict(files) if files else None,
                    request_options=options,
                )
            except Exception as exc:
                raise self._translate(exc, method, path) from exc

        response = request()
        if response.status_code == 401 and self.token_kind() == "personal access token":
            # The SDK tells by this machine's clock whether its session token has ended, and a clock may be set back.
            sdk._tokens_client._access_token = None
            response = request()
        if response.status_code >= 400:
            raise self._refusal(response.status_code, response.text, method, path)
        return response

    def _not_label_studio(self, seen: str) -> LabelStudioError:
        return LabelStudioError(f"{seen}; check that LABEL_STUDIO_URL, {self.url}, is Label Studio's own address")

    def _refusal(self, status: int, text: str, method: str, path: str) -> LabelStudioError:
        detail = _detail(text)
        if status in (401, 403):
            hint = "it is wrong, or revoked, or of a kind switched off in Label Studio"
            if self.token_kind() == "legacy token":
                hint += " (legacy tokens are off by default: Organization → API tokens settings)"
            return LabelStudioAuthError(
                f"Label Studio at {self.url} refused LABEL_STUDIO_TOKEN, a {self.token_kind()} "
                f"(status {status}, {detail}): {hint}; set a token from Account & Settings",
                status=status,
            )
        if status == 404 and "No Project matches" in detail:
            named = f"project {path.split('/')[2]}" if path.startswith("api/projects/") else "such project"
            return ProjectNotFoundError(
                f"Label Studio at {self.url} has no {named} that this token may see; "
                "the number is in the project's address in the browser",
                status=status,
            )
        return LabelStudioError(f"{method} {self.url}/{path} answered {status}: {detail}", status=status)

    def _translate(self, exc: Exception, method: str, path: str) -> LabelStudioError:
        if isinstance(exc, LabelStudioError):
            return exc
        status = getattr(exc, "status_code", None)
        if isinstance(status, int):
            return self._refusal(status, json.dumps(getattr(exc, "body", None)), method, path)
        if not isinstance(exc, httpx.TransportError):
            return self._not_label_studio(f"{method} {path} could not be read ({type(exc).__name__})")
        return LabelStudioUnreachableError(
            f"Label Studio does not answer at {self.url} ({type(exc).__name__}: {exc}); "
            "start it, or set LABEL_STUDIO_URL to where this service reaches it"
        )


def _project(raw: Mapping[str, Any]) -> Project:
    return Project(
        id=int(raw["id"]),
        title=str(raw.get("title") or ""),
        created_at=str(raw.get("created_at") or ""),
        label_config=str(raw.get("label_config") or ""),
        model_version=str(raw.get("model_version") or ""),
        sampling=str(raw.get("sampling") or ""),
        show_collab_predictions=bool(raw.get("show_collab_predictions")),
        n_tasks=int(raw.get("task_number") or 0),
    )


def _task(raw: Mapping[str, Any], image_field: str, fields: Sequence[str]) -> Task:
    data = raw.get("data")
    known = data if isinstance(data, Mapping) else {}
    reference = known.get(image_field)
    kept = {name: known[name] for name in fields if name in known}
    return Task(int(raw["id"]), reference if isinstance(reference, str) else None, kept)


def _annotated_task(raw: Mapping[str, Any], image_field: str, fields: Sequence[str]) -> AnnotatedTask:
    return AnnotatedTask(_task(raw, image_field, fields), [_annotation(item) for item in raw.get("annotations", [])])


def _annotation(raw: Mapping[str, Any]) -> Annotation:
    result = raw.get("result")
    return Annotation(
        id=int(raw["id"]),
        result=[region for region in result if isinstance(region, Mapping)] if isinstance(result, list) else [],
        was_cancelled=bool(raw.get("was_cancelled")),
        ground_truth=bool(raw.get("ground_truth")),
        updated_at=str(raw.get("updated_at") or ""),
        completed_by=_person(raw.get("completed_by")),
    )


def _person(raw: object) -> int | None:
    """The id of who completed an annotation; some routes give the id, others the user. Names are never kept."""
    found = _id_of(raw) if isinstance(raw, Mapping) else raw
    return found if type(found) is int else None


def event_of_webhook(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to keep of a webhook about annotations, small JSON for `answers_of_event`; None if it does not say enough.

    Label Studio sends one annotation with its task, several with several, or the ids of deleted ones, and the project
    with its counts (webhooks/serializers_for_hooks.py); nothing of it with `send_payload` off, and no ids when the
    Data Manager deletes many.
    """
    project = body.get("project")
    if not isinstance(project, Mapping):
        return None
    kept: dict[str, Any] = {
        "label_config": project.get("label_config"),
        "counts": [project.get("total_annotations_number"), project.get("skipped_annotations_number")],
        "model_version": project.get("model_version"),
    }
    if body.get("action") == "ANNOTATIONS_DELETED":
        kept["deleted"] = [_id_of(item) for item in _listed(body.get("annotations"))]
    else:
        names = ("id", "task", "result", "was_cancelled", "ground_truth", "updated_at")
        annotations = [item for item in _listed(body.get("annotation")) if isinstance(item, Mapping)]
        if not all(_is_id(item.get("task")) for item in annotations):
            return None
        tasks = {task["id"]: task.get("data") for task in _listed(body.get("task")) if _is_id(_id_of(task))}
        kept["annotations"] = [
            {name: item.get(name) for name in names} | {"completed_by": _person(item.get("completed_by"))}
            for item in annotations
        ]
        kept["tasks"] = [[item["task"], tasks.get(item["task"])] for item in kept["annotations"]]
    return kept if answers_of_event(kept, "", ()) and len(json.dumps(kept)) <= MAX_EVENT_CHARS else None


def answers_of_event(event: Mapping[str, Any], image_field: str, fields: Sequence[str]) -> AnswerEvent | None:
    """The answers in what `event_of_webhook` kept; None if they are not all there."""
    label_config, counts = event.get("label_config"), event.get("counts")
    tasks, annotations, deleted = (event.get(name, []) for name in ("tasks", "annotations", "deleted"))
    whole = (
        isinstance(label_config, str)
        and isinstance(counts, list)
        and all(type(count) is int and abs(count) < 2**63 for count in counts)
        and (annotations or deleted)
        and all(map(_is_id, deleted))
        and all(isinstance(task[1], Mapping) for task in tasks)
        and all(_is_id(item.get(name)) for item in annotations for name in ("id", "task"))
        and all(isinstance(item.get("updated_at"), str) for item in annotations)
    )
    if not whole:
        return None
    answered = [
        AnnotatedTask(_task({"id": task_id, "data": data}, image_field, fields), [_annotation(item)])
        for (task_id, data), item in zip(tasks, annotations, strict=True)
    ]
    model_version = event.get("model_version")
    ordered_by = model_version if isinstance(model_version, str) else None
    return AnswerEvent(answered, list(deleted), str(label_config), sum(counts or ()), ordered_by)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_id(number: object) -> bool:
    """Whether it may be the id of something in a database, which arrays of 64-bit numbers can hold."""
    return type(number) is int and 0 < number < 2**63


def _id_of(item: object) -> object:
    return item.get("id") if isinstance(item, Mapping) else None


def _local_storages(is_target: bool) -> str:
    return "api/storages/export/localfiles" if is_target else "api/storages/localfiles"


def _detail(text: str) -> str:
    """The human part of an error body: `detail`, the validation errors, or the start of the text."""
    try:
        body = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:200] or "no explanation"
    if isinstance(body, Mapping):
        errors = body.get("validation_errors")
        if errors:
            return json.dumps(errors, ensure_ascii=False)[:600]
        if body.get("detail"):
            return str(body["detail"])[:300]
    return json.dumps(body, ensure_ascii=False)[:300]
