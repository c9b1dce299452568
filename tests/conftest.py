"""Fixtures: the running demo, and projects of a test's own in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from live import (
    REPOSITORY,
    RUN_DIR,
    LabelingProject,
    Stack,
    await_demo,
    config_of,
    data_uri,
    demo_environment,
    picture,
    redis_url,
    remove,
    start_demo,
    stop_demo,
)
from s3 import running_s3_server

from backend.config import Settings
from backend.demo import write_digits
from backend.services import Services


@pytest.fixture(scope="session")
def demo_images() -> Path:
    """Class folders of coloured squares, the same at every run, so that a second run finds its project again."""
    folder = REPOSITORY / ".test" / "images"
    for number in range(24):
        colour = ("red", "green", "blue")[number % 3]
        target = folder / colour / f"{number:02d}.png"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            picture(colour, number).save(target)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits, in a folder for each."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that speaks the S3 protocol, up for the whole session."""
    with running_s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def stack(demo_images: Path) -> Iterator[Stack]:
    """The running demo."""
    for name in ("data", "redis", "label-studio-data", "images"):
        remove(RUN_DIR / name)
    for name in ("projects.json", "demo.json", "secrets.json"):
        (RUN_DIR / name).unlink(missing_ok=True)
    process = start_demo(demo_images, RUN_DIR)
    try:
        facts = await_demo(process, RUN_DIR)
        environment = demo_environment(
            LABEL_STUDIO_URL=facts["label_studio_url"],
            LABEL_STUDIO_TOKEN=facts["label_studio_token"],
            BACKEND_URL=facts["backend_url"],
            BACKEND_USER=facts["backend_user"],
            BACKEND_PASSWORD=facts["backend_password"],
            DATA_DIR=str(RUN_DIR / "data"),
            REDIS_URL=redis_url(RUN_DIR),
        )
        running = Stack(facts, environment, process)
        yield running
        running.label_studio.close()
        running.backend.close()
    finally:
        stop_demo(process)


@pytest.fixture(scope="session")
def services(stack: Stack) -> Iterator[Services]:
    """The use cases, in this process, with the demo's settings."""
    services = Services(Settings.from_mapping(stack.environment))
    yield services
    services.close()


@pytest.fixture
def make_project(stack: Stack, services: Services) -> Iterator[Callable[..., LabelingProject]]:
    """Makes connected projects; they are deleted afterwards."""
    made: list[int] = []

    def make(
        references: Sequence[str] | None = None,
        *,
        labels: Sequence[str] = ("red", "green", "blue"),
        config: str | None = None,
        image_field: str = "image",
        connect: bool = True,
        **names: str,
    ) -> LabelingProject:
        if references is None:
            references = [data_uri(picture(("red", "green", "blue")[i % 3], i)) for i in range(18)]
        body = {"title": f"test project {time.time():.3f}", "label_config": config or config_of(labels)}
        project = LabelingProject(stack, int(stack.call("POST", "/api/projects/", json=body)["id"]), **names)
        made.append(project.id)
        if references:
            project.add_tasks(references, image_field)
        if connect:
            services.connector.connect(project.id)
            if references:
                project.wait(lambda status: status["model_version"] is not None)
        return project

    yield make
    for project_id in made:
        stack.label_studio.delete(f"/api/projects/{project_id}/")


@pytest.fixture
def project(make_project: Callable[..., LabelingProject]) -> LabelingProject:
    """A connected project of 18 coloured squares, seeded."""
    return make_project()
