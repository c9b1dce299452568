"""Wiring: the only place that builds collaborators from Settings."""

from __future__ import annotations

import hashlib
import hmac
import importlib
from datetime import UTC, datetime
from functools import cached_property
from random import Random
from threading import Lock

from backend.adapters.backbones import Backbone, load_backbone, torchvision_models
from backend.adapters.image_source import ImageSource, open_images
from backend.adapters.images import ImageLoader
from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry
from backend.config import Settings
from backend.loop.backbones import ProjectBackbones
from backend.loop.changes import ChangeWatch
from backend.loop.connect import Connector
from backend.loop.dashboard import DashboardReader
from backend.loop.doctor import Doctor
from backend.loop.embed import Embedder
from backend.loop.evaluate import Evaluator
from backend.loop.events import EventHandler
from backend.loop.finetune import Finetuner
from backend.loop.inputs import InputReader
from backend.loop.ledger import Ledger
from backend.loop.map import MapMaker, MapPredictions, MapReader, MapRequests
from backend.loop.metrics import MetricsReader, RequestCounts
from backend.loop.ready import TIMEOUT_S, Readiness, ServiceChecks
from backend.loop.reconcile import Reconciler
from backend.loop.retries import Retries
from backend.loop.score import Predictor
from backend.loop.shards import Shards
from backend.loop.status import StatusReader
from backend.loop.thumbnails import Thumbnails
from backend.loop.train import Trainer
from backend.loop.versions import Versions
from backend.storage import Place

LOADED_ON_USE = ("label_studio_sdk.label_interface.interface", "redis", "rq", "safetensors.numpy")
"""What is imported by those who come to need it, so that commands start at once."""


def load_modules(*, before_fork: bool = False) -> None:
    """Imports all of that now, about two seconds, for a process in which somebody would wait for it later.

    `before_fork`: what a worker needs besides, but not Lance, which must not be loaded when a process forks.
    """
    for name in (*LOADED_ON_USE, "pyarrow.dataset" if before_fork else "lance"):
        importlib.import_module(name)
    if before_fork:
        torchvision_models()


class Services:
    """Everything one process needs, each part built on first use and then kept."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._backbone: Backbone | None = None
        self._backbone_guard = Lock()

    def close(self) -> None:
        """Closes all connections."""
        self.label_studio.close()
        self.probed_label_studio.close()
        self.images.close()
        self.jobs.close()

    @cached_property
    def label_studio(self) -> LabelStudioClient:
        """The client of the one Label Studio this service works for."""
        return LabelStudioClient(self.settings.label_studio_url, self.settings.label_studio_token)

    @cached_property
    def jobs(self) -> Jobs:
        """The job queue."""
        return Jobs(self.settings.redis_url)

    @cached_property
    def registry(self) -> Registry:
        """The data folder."""
        return Registry(self.settings.data_dir / "projects")

    @cached_property
    def images(self) -> ImageLoader:
        """The reader of task images."""
        return ImageLoader(
            self.settings.label_studio_url,
            self.label_studio.auth_headers,
            timeout_s=self.settings.image_timeout_s,
            max_image_bytes=self.settings.max_image_bytes,
            max_image_pixels=self.settings.max_image_pixels,
            allow_private_addresses=self.settings.allow_private_addresses,
        )

    def image_source(self, place: Place, name_filter: str | None = None) -> ImageSource:
        """The images of a folder or bucket, outside Label Studio; see `ImageSource` for the filter."""
        return open_images(place, name_filter=name_filter, max_image_bytes=self.settings.max_image_bytes)

    def backbone(self) -> Backbone:
        """The backbone of the settings, loaded once; safe from several threads."""
        with self._backbone_guard:
            if self._backbone is None:
                self._backbone = load_backbone(
                    self.settings.backbone,
                    self.settings.backbone_weights,
                    allow_download=self.settings.allow_weights_download,
                )
            return self._backbone

    @cached_property
    def backbones(self) -> ProjectBackbones:
        """That backbone, or a project's own."""
        return ProjectBackbones(
            load_base=self.backbone, registry=self.registry, finetunes=self.settings.train == "finetune"
        )

    @cached_property
    def embedder(self) -> Embedder:
        """Use case: embed tasks."""
        return Embedder(
            label_studio=self.label_studio,
            images=self.images,
            backbone_of=lambda project_id: self.backbones.current(project_id).backbone,
            jobs=self.jobs,
            registry=self.registry,
            batch_size=self.settings.embed_batch_size,
            validation_filter=self.settings.validation_filter,
            shards=self.shards,
            embedded=self.map_requests.request_if_due,
        )

    @cached_property
    def map_requests(self) -> MapRequests:
        """Asks for maps."""
        return MapRequests(jobs=self.jobs, registry=self.registry)

    @cached_property
    def map_maker(self) -> MapMaker:
        """Use case: lay a project's images out on a map."""
        return MapMaker(jobs=self.jobs, registry=self.registry, embedder=self.embedder, settings=self.settings)

    @cached_property
    def map_reader(self) -> MapReader:
        """Use case: answer for the map."""
        return MapReader(jobs=self.jobs, registry=self.registry, retries=self.retries)

    @cached_property
    def shards(self) -> Shards:
        """What large projects are divided into."""
        return Shards(jobs=self.jobs, registry=self.registry, settings=self.settings)

    @cached_property
    def trainer(self) -> Trainer:
        """Use case: retrain and publish."""
        return Trainer(
            label_studio=self.label_studio,
            jobs=self.jobs,
            registry=self.registry,
            embedder=self.embedder,
            inputs=self.inputs,
            finetuner=self.finetuner,
            shards=self.shards,
            versions=self.versions,
            settings=self.settings,
            now=lambda: datetime.now(UTC),
        )

    @cached_property
    def versions(self) -> Versions:
        """Use case: list versions, go back to one."""
        return Versions(
            label_studio=self.label_studio,
            jobs=self.jobs,
            registry=self.registry,
            settings=self.settings,
            now=lambda: datetime.now(UTC),
        )

    @cached_property
    def ledger(self) -> Ledger:
        """The answers as this process knows them."""
        wanted = self.settings.validation_filter
        return Ledger(label_studio=self.label_studio, jobs=self.jobs, fields=wanted.fields if wanted else ())

    @cached_property
    def inputs(self) -> InputReader:
        """What versions are made from; kept between a version and its evaluation."""
        return InputReader(
            ledger=self.ledger,
            jobs=self.jobs,
            registry=self.registry,
            embedder=self.embedder,
            backbones=self.backbones,
            settings=self.settings,
        )

    @cached_property
    def evaluator(self) -> Evaluator:
        """Use case: evaluate what is published."""
        return Evaluator(
            jobs=self.jobs,
            registry=self.registry,
            inputs=self.inputs,
            ledger=self.ledger,
            map_predictions=MapPredictions(jobs=self.jobs, registry=self.registry, requests=self.map_requests),
            settings=self.settings,
        )

    @cached_property
    def finetuner(self) -> Finetuner:
        """Use case: fine-tune a project's backbone."""
        return Finetuner(
            label_studio=self.label_studio,
            jobs=self.jobs,
            registry=self.registry,
            embedder=self.embedder,
            backbones=self.backbones,
            settings=self.settings,
        )

    @cached_property
    def events(self) -> EventHandler:
        """Use case: take in what Label Studio tells."""
        return EventHandler(jobs=self.jobs, registry=self.registry)

    @cached_property
    def predictor(self) -> Predictor:
        """Use case: answer /predict."""
        return Predictor(registry=self.registry, embedder=self.embedder, score_order=self.settings.score_order)

    @cached_property
    def reconciler(self) -> Reconciler:
        """Use case: compare with Label Studio, prune."""
        return Reconciler(
            label_studio=self.label_studio,
            jobs=self.jobs,
            registry=self.registry,
            embedder=self.embedder,
            ledger=self.ledger,
            versions=self.versions,
            keep_versions=self.settings.keep_versions,
        )

    @cached_property
    def retries(self) -> Retries:
        """Use case: keep what failed, try it again."""
        return Retries(jobs=self.jobs, random_source=Random())

    @cached_property
    def status(self) -> StatusReader:
        """Use case: say how things are."""
        return StatusReader(jobs=self.jobs, registry=self.registry, settings=self.settings, retries=self.retries)

    @cached_property
    def dashboard(self) -> DashboardReader:
        """Use case: all that the dashboard shows of a project."""
        return DashboardReader(
            status=self.status,
            versions=self.versions,
            predictor=self.predictor,
            embedder=self.embedder,
            jobs=self.jobs,
            registry=self.registry,
            settings=self.settings,
        )

    @cached_property
    def changes(self) -> ChangeWatch:
        """Use case: tell a page that something changed."""
        return ChangeWatch(jobs=self.jobs, registry=self.registry)

    @cached_property
    def thumbnails(self) -> Thumbnails:
        """Use case: show images small."""
        return Thumbnails(label_studio=self.label_studio, embedder=self.embedder, registry=self.registry)

    @cached_property
    def metrics(self) -> MetricsReader:
        """Use case: the figures for Prometheus."""
        return MetricsReader(jobs=self.jobs, registry=self.registry, retries=self.retries)

    @cached_property
    def readiness(self) -> Readiness:
        """Use case: say whether a label would get through."""
        checks = ServiceChecks(jobs=self.jobs, registry=self.registry, label_studio=self.probed_label_studio)
        return Readiness(checks.all())

    @cached_property
    def probed_label_studio(self) -> LabelStudioClient:
        """The same Label Studio for a client that gives up soon."""
        url, token = self.settings.label_studio_url, self.settings.label_studio_token
        return LabelStudioClient(url, token, timeout_s=TIMEOUT_S, n_retries=0)

    @cached_property
    def request_counts(self) -> RequestCounts:
        """The requests this process answered."""
        return RequestCounts(self.jobs)

    @cached_property
    def connector(self) -> Connector:
        """Use case: attach the service to a project."""
        return Connector(
            label_studio=self.label_studio,
            registry=self.registry,
            jobs=self.jobs,
            settings=self.settings,
            webhook_secret=self.webhook_secret,
        )

    @cached_property
    def doctor(self) -> Doctor:
        """Use case: check every link."""
        return Doctor(
            label_studio=self.label_studio,
            registry=self.registry,
            jobs=self.jobs,
            images=self.images,
            load_backbone=self.backbone,
            settings=self.settings,
            webhook_secret=self.webhook_secret,
            retries=self.retries,
        )

    @cached_property
    def webhook_secret(self) -> str:
        """The webhook's secret header; derived from the password unless set. Empty: authentication is off."""
        if self.settings.webhook_secret or not self.settings.backend_password:
            return self.settings.webhook_secret
        return hmac.new(self.settings.backend_password.encode(), b"webhook", hashlib.sha256).hexdigest()
