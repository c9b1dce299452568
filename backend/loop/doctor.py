"""Check every link between Redis, Label Studio and this service, in both directions; name the cause and the cure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence

import httpx

from backend.adapters.backbones import Backbone
from backend.adapters.images import ImageLoader
from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import UNCERTAINTY_SAMPLING, LabelStudioClient
from backend.adapters.registry import Registry
from backend.addresses import same_address
from backend.choices import ChoicesConfig, parse_labeling_config, read_labels
from backend.config import Settings
from backend.errors import BackendError, ImageError, LabelingConfigError, LabelStudioError, RedisUnavailableError
from backend.loop.connect import (
    PRIVATE_ADDRESS_CURE,
    PROJECT_HEADER,
    SECRET_HEADER,
    explain_refusal,
    wanted_sampling,
    webhook_faults,
)
from backend.loop.retries import Retries
from backend.loop.validation import ground_truth_tasks, how_to_label, keep_aside
from backend.schema import Check, Project, Task, ValidationFilter

HEALTH_TIMEOUT_S = 1.0
"""What Label Studio itself allows /health."""

READY_TIMEOUT_S = 10.0
"""/ready answers within a few seconds whatever hangs."""

N_IMAGES_TRIED = 3

N_VALUES_NAMED = 5
"""Values of a data field that are named when none is the one the validation filter asks for."""

LOOK_INTO_THE_LOG = "look into Label Studio's log, then ask again"


class Doctor:
    """Looks, changes nothing."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        registry: Registry,
        jobs: Jobs,
        images: ImageLoader,
        load_backbone: Callable[[], Backbone],
        settings: Settings,
        webhook_secret: str,
        retries: Retries,
    ) -> None:
        self._retries = retries
        self._label_studio = label_studio
        self._registry = registry
        self._jobs = jobs
        self._images = images
        self._load_backbone = load_backbone
        self._settings = settings
        self._webhook_secret = webhook_secret

    def examine(self, project_ids: list[int] | None = None) -> Iterator[Check]:
        """One check after the other, as they are made; projects: the given ones, else all connected ones."""
        yield from self._redis()
        yield self._backbone()
        backend = self._backend()
        yield backend
        if backend.ok:
            yield self._readiness()
        reachable = yield from self._label_studio_itself()
        if not reachable:
            return
        projects = project_ids if project_ids is not None else self._registry.known_projects()
        if not projects:
            yield Check("projects", False, "none is connected", "run: python -m backend connect PROJECT_ID")
        for project_id in projects:
            yield from self._project(project_id)

    def _redis(self) -> Iterator[Check]:
        try:
            n_workers = self._jobs.n_workers()
        except RedisUnavailableError as exc:
            yield Check("Redis", False, str(exc), "start Redis or Valkey, or set REDIS_URL")
            return
        yield Check("Redis", True, "answers")
        yield Check(
            "worker",
            n_workers > 0,
            f"{n_workers} listening",
            None if n_workers else "start one: python -m backend worker (without it nothing is trained)",
        )

    def _backbone(self) -> Check:
        try:
            backbone = self._load_backbone()
        except BackendError as exc:
            return Check("backbone", False, str(exc), "correct BACKBONE or BACKBONE_WEIGHTS")
        if backbone.warning:
            return Check(
                "backbone", True, backbone.warning, "set BACKBONE_WEIGHTS to a file with its weights", warning=True
            )
        return Check("backbone", True, f"{backbone.name}, weights from {backbone.weights_source}")

    def _backend(self) -> Check:
        """Our own address, asked with our own credentials, as Label Studio would."""
        settings = self._settings
        auth = (settings.backend_user, settings.backend_password) if settings.backend_password else None
        try:
            answer = httpx.get(f"{settings.backend_url}/health", auth=auth, timeout=HEALTH_TIMEOUT_S * 5)
        except httpx.HTTPError as exc:
            return Check(
                "this backend",
                False,
                f"{settings.backend_url} does not answer ({type(exc).__name__})",
                "start it (python -m backend web), or correct BACKEND_URL",
            )
        if answer.status_code == 401:
            return Check(
                "this backend",
                False,
                f"{settings.backend_url} refuses BACKEND_USER and BACKEND_PASSWORD",
                "give this command and the web service the same BACKEND_USER and BACKEND_PASSWORD",
            )
        took = answer.elapsed.total_seconds()
        ok = answer.status_code == 200 and answer.headers.get("X-Backend") == "active-learning"
        if not ok:
            return Check(
                "this backend",
                False,
                f"something else answers at {settings.backend_url} (status {answer.status_code})",
                "correct BACKEND_URL or free the port",
            )
        if not settings.backend_password:
            return Check(
                "this backend",
                True,
                f"{settings.backend_url} answers in {took:.2f} s, to anybody",
                "set BACKEND_PASSWORD, then run connect again",
                warning=True,
            )
        return Check("this backend", True, f"{settings.backend_url} answers in {took:.2f} s")

    def _readiness(self) -> Check:
        """What the web service itself can reach, which may be another machine with other settings than this command."""
        name = "this backend is ready"
        settings = self._settings
        auth = (settings.backend_user, settings.backend_password) if settings.backend_password else None
        try:
            answer = httpx.get(f"{settings.backend_url}/ready", auth=auth, timeout=READY_TIMEOUT_S)
            found = dict(answer.json().get("checks", {})) if answer.status_code in (200, 503) else {}
        except (httpx.HTTPError, ValueError, TypeError, AttributeError) as exc:
            return Check(name, False, f"/ready gives no answer ({type(exc).__name__})", "look into its log")
        if answer.status_code == 200:
            return Check(name, True, f"{len(found)} checks of its own pass")
        if answer.status_code != 503:
            return Check(
                name, False, f"/ready answers {answer.status_code}", "restart the web service, it is another release"
            )
        shown = {check: item for check, item in found.items() if isinstance(item, dict)}
        broken = [f"{check}: {item.get('found')}" for check, item in shown.items() if not item.get("ok")]
        return Check(
            name,
            False,
            "; ".join(broken) or "it does not say why",
            "cure what is named; if all is well below, give the web service the settings of this command",
        )

    def _label_studio_itself(self) -> Generator[Check, None, bool]:
        kind = self._label_studio.token_kind()
        try:
            user = self._label_studio.whoami()
            version = self._label_studio.server_version()
        except LabelStudioError as exc:
            yield Check("Label Studio", False, str(exc), "correct LABEL_STUDIO_URL or LABEL_STUDIO_TOKEN")
            return False
        yield Check("Label Studio", True, f"{self._settings.label_studio_url}, release {version}")
        yield Check("token", True, f"{kind} of {user.get('email')}")
        return True

    def _project(self, project_id: int) -> Iterator[Check]:
        label = f"project {project_id}: "
        yield from self._jobs_of(label, project_id)
        try:
            project = self._label_studio.project(project_id)
        except LabelStudioError as exc:
            yield Check(f"{label}access", False, str(exc), "use a token of a user who may see the project")
            return
        try:
            config = parse_labeling_config(project.label_config)
        except LabelingConfigError as exc:
            yield Check(f"{label}labeling config", False, str(exc), "change it under Settings → Labeling Interface")
            return
        yield Check(f"{label}labeling config", True, f"{len(config.labels)} labels, image in ${config.image_field}")
        yield self._connection(label, project_id)
        yield self._webhook(label, project_id)
        yield self._sampling(label, project)
        if not project.show_collab_predictions:
            yield Check(
                f"{label}pre-labels",
                True,
                "not shown",
                f"python -m backend connect {project_id} shows them",
                warning=True,
            )
        yield self._queue(label, project)
        wanted = self._settings.validation_filter
        try:
            tasks = self._label_studio.tasks(project_id, config.image_field, fields=wanted.fields if wanted else ())
        except LabelStudioError as exc:
            yield Check(f"{label}images", False, str(exc), LOOK_INTO_THE_LOG)
            return
        yield self._image_access(label, project_id, config.image_field, tasks)
        yield from self._validation(label, project_id, config, tasks)

    def _jobs_of(self, label: str, project_id: int) -> Iterator[Check]:
        """Jobs that are failing, with the reason; nothing if none is, or Redis is away, which another check tells."""
        try:
            failures = self._retries.failures(project_id)
        except RedisUnavailableError:
            return
        for failure in failures:
            shown = failure.shown()
            again = f"tried again at {shown['next_try']}" if failure.next_try else "not tried again by itself"
            cure = "do what it says" if failure.needs_a_person else "if it stays, do what it says, or look into the log"
            if failure.next_try is None:
                cure = "press Start Training in Label Studio once it is cured"
            yield Check(
                f"{label}{failure.work}",
                False,
                f"failed {failure.times} times since {shown['since']}, {again}: {failure.reason}",
                cure,
            )

    def _connection(self, label: str, project_id: int) -> Check:
        """Listing the backends makes Label Studio call ours, so its state is the other direction's check."""
        name = f"{label}Label Studio → backend"
        connect = f"run: python -m backend connect {project_id}"
        url = self._settings.backend_url
        try:
            found = self._label_studio.backends(project_id)
        except LabelStudioError as exc:
            return Check(name, False, str(exc), connect)
        mine = [item for item in found if same_address(item["url"], url)]
        if not mine:
            others = ", ".join(item["url"] for item in found) or "none"
            return Check(name, False, f"no backend with address {url} (connected: {others})", connect)
        backend = mine[0]
        if backend.get("state") != "CO":
            reason = str(backend.get("error_message") or backend.get("readable_state"))
            cure = f"the address must be reachable from Label Studio's machine; {PRIVATE_ADDRESS_CURE}"
            if "401" in reason:
                cure = f"the credentials differ; {connect}"
            elif backend.get("state") == "ER":
                cure = connect
            return Check(name, False, f"{url} is {backend.get('readable_state')}: {reason}", cure)
        if self._settings.backend_password and backend.get("auth_method") != "BASIC_AUTH":
            return Check(name, False, "connected without Basic auth", connect)
        return Check(name, True, f"{url} connected")

    def _webhook(self, label: str, project_id: int) -> Check:
        name = f"{label}webhook"
        connect = f"run: python -m backend connect {project_id}"
        url = f"{self._settings.backend_url}/webhook"
        headers = {PROJECT_HEADER: str(project_id)}
        if self._webhook_secret:
            headers[SECRET_HEADER] = self._webhook_secret
        try:
            mine = [item for item in self._label_studio.webhooks(project_id) if same_address(item["url"], url)]
        except LabelStudioError as exc:
            return Check(name, False, explain_refusal(exc, url), connect)
        if not mine:
            return Check(name, False, f"none to {url}, so labels are only noticed at the next reconciliation", connect)
        if len(mine) > 1:
            return Check(name, False, f"{len(mine)} to the same address, each label is told twice", connect)
        faults = webhook_faults(mine[0], headers)
        if faults:
            return Check(name, False, "; ".join(faults), connect)
        return Check(name, True, f"{url}, with its secret" if self._webhook_secret else url)

    def _queue(self, label: str, project: Project) -> Check:
        """Whether Label Studio orders by predictions that exist and are the published ones."""
        name = f"{label}queue"
        published = self._registry.published_record(project.id)
        if published is None and not project.n_tasks:
            return Check(name, True, "nothing to order: the project has no tasks yet")
        if published is None:
            return Check(
                name, False, "no version published yet", "wait for the embedding to finish; the worker's log shows it"
            )
        if not published.window:
            return Check(name, True, f"{published.version}: nothing left to label")
        if project.model_version != published.version:
            return Check(
                name,
                False,
                f"Label Studio orders by {project.model_version!r}, published is {published.version}",
                "wait for the next reconciliation, or choose it under Settings → Model → live predictions",
            )
        try:
            counts = self._label_studio.prediction_counts(project.id)
        except LabelStudioError as exc:
            return Check(name, False, str(exc), LOOK_INTO_THE_LOG)
        n_predictions = counts.get(published.version, 0)
        ok = n_predictions >= len(published.window)
        return Check(
            name,
            ok,
            f"{published.version}: {n_predictions} predictions for a window of {len(published.window)}",
            None if ok else "press Start Training in Label Studio: the next version brings new predictions",
        )

    def _image_access(self, label: str, project_id: int, image_field: str, tasks: Sequence[Task]) -> Check:
        name = f"{label}images"
        if not tasks:
            return Check(name, True, "the project has no tasks yet", "import images", warning=True)
        failures = []
        tried = tasks[:: max(1, len(tasks) // N_IMAGES_TRIED)][:N_IMAGES_TRIED]
        for task in tried:
            try:
                if task.image is None:
                    raise ImageError(f"no text in ${image_field}")
                self._images.load(task.image, task_id=task.id)
            except ImageError as exc:
                failures.append(f"task {task.id}: {exc}")
        if failures:
            cure = "make the images readable with LABEL_STUDIO_TOKEN, or correct the tasks"
            return Check(name, False, "; ".join(failures), cure)
        left_out = self._registry.image_failures(project_id)
        if left_out:
            task_id, reason = next(iter(left_out.items()))
            found = f"{len(left_out)} of {len(tasks)} left out, such as task {task_id}: {reason}"
            return Check(name, True, found, "the status lists them all", warning=True)
        return Check(name, True, f"{len(tried)} of {len(tasks)} tried, all readable")

    def _validation(self, label: str, project_id: int, config: ChoicesConfig, tasks: Sequence[Task]) -> Iterator[Check]:
        """Which tasks VALIDATION_FILTER keeps aside, and whether an accuracy can be measured on them."""
        name = f"{label}validation split"
        wanted = self._settings.validation_filter
        published = self._registry.published_record(project_id)
        if published is not None and published.validation_filter != (str(wanted) if wanted else None):
            here, there = (str(item) if item else "none" for item in (wanted, published.validation_filter))
            yield Check(
                f"{label}validation filter",
                True,
                f"VALIDATION_FILTER is {here} here, {there} in {published.version}",
                "give this command and the worker the same VALIDATION_FILTER; a restarted worker makes a new version",
                warning=True,
            )
        if wanted is None or not tasks:
            return
        try:
            annotated = self._label_studio.annotated_tasks(project_id, config.image_field, fields=wanted.fields)
        except LabelStudioError as exc:
            yield Check(name, False, str(exc), LOOK_INTO_THE_LOG)
            return
        labels = keep_aside(read_labels(config, annotated), annotated, wanted, None, ())
        if wanted.field:
            taken = {task.id for task in tasks if wanted.holds(task.fields)} | labels.reserved
        else:
            taken = ground_truth_tasks(annotated)
        found = f"{wanted} takes {len(taken)} of {len(tasks)} tasks, {len(labels.validation)} of these are labeled"
        cure = None
        if not taken and wanted.field:
            found = f"no task has {wanted}: {_values_found(wanted, tasks)}"
            cure = "correct VALIDATION_FILTER, or import tasks with that value"
        elif len(taken) == len(tasks):
            cure = "narrow VALIDATION_FILTER: no task is left to label and train on"
        elif not labels.validation:
            cure = how_to_label(wanted)
        elif not labels.labels and not wanted.field:
            cure = (
                "take ground_truth from most annotations: no other task is labeled, so there is nothing to train on "
                "(imported annotations are ground truth unless they say false)"
            )
        yield Check(name, True, found, cure, warning=cure is not None)

    def _sampling(self, label: str, project: Project) -> Check:
        """Whether the next task that Label Studio hands out is one that comes first by SCORE_ORDER."""
        wanted, order = wanted_sampling(self._settings.score_order), self._settings.score_order
        cure = f"run: python -m backend connect {project.id}"
        if project.sampling == wanted:
            return Check(f"{label}sampling", True, project.sampling)
        found = project.sampling
        if project.sampling == UNCERTAINTY_SAMPLING:
            found += f", which takes the lowest score first, but with SCORE_ORDER={order} the highest is to come first"
        return Check(f"{label}sampling", False, found, cure)


def _values_found(wanted: ValidationFilter, tasks: Sequence[Task]) -> str:
    """What the tasks have in the filter's field, the most frequent values first."""
    values = Counter(wanted.text_of(task.fields) for task in tasks if wanted.field in task.fields)
    if not values:
        return f"there is no field {wanted.field!r} in their data"
    named = ", ".join(f"{value[:40]!r} ({n})" for value, n in values.most_common(N_VALUES_NAMED))
    rest = len(values) - N_VALUES_NAMED
    return f"{wanted.field} is {named}" + (f" and {rest} other values" if rest > 0 else "")
