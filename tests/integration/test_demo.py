"""`make demo` as a command: its contract, its second start, its end, and its sentences when it cannot start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live import (
    REPOSITORY,
    RUN_DIR,
    Stack,
    await_demo,
    copy_label_studio,
    demo_environment,
    free_port,
    picture,
    start_demo,
    stop_demo,
)

KEYS = {
    "label_studio_url",
    "label_studio_token",
    "email",
    "password",
    "project_id",
    "backend_url",
    "backend_user",
    "backend_password",
    "dashboard_url",
}


def attempt(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A demo that is expected to refuse at once."""
    return subprocess.run(
        [sys.executable, "-m", "backend", "demo", *arguments],
        env=demo_environment(**environment),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def processes_of(run_dir: Path) -> list[str]:
    """Command lines of living processes whose output goes below run_dir."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            output = str((entry / "fd" / "1").readlink())
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if output.startswith(str(run_dir)):
            found.append(command)
    return found


def test_demo_json_holds_all_that_is_promised(stack: Stack) -> None:
    """The file written when the demo is ready has every field, and its project is seeded and labeled by folder."""
    assert set(stack.facts) == KEYS
    status = stack.status(stack.facts["project_id"])
    assert status["kind"] in ("seed", "model")
    assert status["pool_size"] == 24
    assert status["image_failures"] == {}
    config = stack.call("GET", f"/api/projects/{stack.facts['project_id']}/")["label_config"]
    assert all(f'value="{label}"' in config for label in ("red", "green", "blue"))
    tasks = stack.call(
        "GET", "/api/tasks/", params={"project": stack.facts["project_id"], "page_size": 100, "fields": "all"}
    )["tasks"]
    assert not any(task["annotations"] for task in tasks)


def test_other_commands_look_at_the_demo_with_its_settings_file(stack: Stack) -> None:
    """`make status` and the like use it: private, and enough to find the project."""
    path = RUN_DIR / "settings.env"
    assert path.stat().st_mode & 0o077 == 0
    done = subprocess.run(
        [sys.executable, "-m", "backend", "--env-file", str(path), "status", str(stack.facts["project_id"])],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    status = json.loads(done.stdout)
    assert (status["project_id"], status["n_workers"]) == (stack.facts["project_id"], 1)


def test_second_start_reuses_everything_and_ctrl_c_leaves_no_process(tmp_path: Path, stack: Stack) -> None:
    """Ctrl-C, then a start with one more image: same project, one more task, and no process left behind."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "label-studio").symlink_to(RUN_DIR / "label-studio")
    copy_label_studio(run_dir)
    images = tmp_path / "images"
    for number, colour in enumerate(("red", "green", "blue", "red")):
        (images / colour).mkdir(parents=True, exist_ok=True)
        picture(colour, number).save(images / colour / f"{number}.png")
    first = start_demo(images, run_dir)
    try:
        facts = await_demo(first, run_dir)
    finally:
        stop_demo(first)
    assert processes_of(run_dir) == []
    assert not (run_dir / "demo.json").exists(), "it says that the demo is ready"
    picture("blue", 9).save(images / "blue" / "new.png")
    started = time.monotonic()
    second = start_demo(images, run_dir)
    try:
        again = await_demo(second, run_dir)
        took = time.monotonic() - started
        assert again["project_id"] == facts["project_id"]
        assert again["password"] == facts["password"]
        output = (run_dir / "demo.log").read_text()
        assert "importing images: 1 in" in output
        assert "installing" not in output
        print(f"second start took {took:.0f} s")
        second.send_signal(signal.SIGTERM)
        second.wait(60)
    finally:
        if second.poll() is None:
            stop_demo(second)
    assert processes_of(run_dir) == []


def test_taken_port_is_one_sentence(tmp_path: Path) -> None:
    """A port in use is named, with how to choose another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = attempt("--run-dir", str(tmp_path), "--backend-port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} is taken")
    assert done.stderr.count("\n") == 1
    assert "BACKEND_PORT=" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--images", "/nowhere/at/all"], {}, "IMAGES=/nowhere/at/all is not a folder"),
        ([], {"SEED_SIZE": "many", "ACQUISITION": "guess"}, "SEED_SIZE: 'many' is not a whole number"),
        ([], {"REDIS_URL": "redis://127.0.0.1:1/0"}, "Redis does not answer at redis://127.0.0.1:1/0"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], sentence: str
) -> None:
    """A missing folder, wrong settings, an unreachable Redis: a clear error, non-zero exit, nothing left running."""
    ports = ["--label-studio-port", str(free_port()), "--backend-port", str(free_port())]
    done = attempt("--run-dir", str(tmp_path), *ports, *arguments, **environment)
    assert done.returncode == (3 if "does not answer" in sentence else 1), done.stdout + done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert processes_of(tmp_path) == []


def test_two_demos_in_one_folder_are_refused(stack: Stack) -> None:
    """A second demo on the same folder would share database and Redis: refused with a sentence."""
    ports = ["--label-studio-port", str(free_port()), "--backend-port", str(free_port())]
    done = attempt("--run-dir", str(RUN_DIR), *ports)
    assert done.returncode == 1
    assert "already runs from" in done.stderr
    assert stack.process.poll() is None


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("LABEL_STUDIO_URL", "http://127.0.0.1:1", "Label Studio does not answer at http://127.0.0.1:1"),
        ("LABEL_STUDIO_TOKEN", "f" * 40, "refused LABEL_STUDIO_TOKEN"),
        ("REDIS_URL", "redis://127.0.0.1:1/0", "Redis does not answer"),
        ("BACKEND_URL", "http://127.0.0.1:1", "Label Studio cannot reach the backend at http://127.0.0.1:1"),
    ],
)
def test_connect_says_which_link_is_broken(stack: Stack, name: str, value: str, sentence: str) -> None:
    """`connect` with one thing wrong: one sentence that names it."""
    done = stack.cli("connect", str(stack.facts["project_id"]), **{name: value})
    assert done.returncode == (3 if "does not answer" in sentence else 1)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_default_label_studio_refuses_the_private_address_and_connect_names_the_setting(
    tmp_path: Path, stack: Stack
) -> None:
    """Against a Label Studio with its default guard, connect says which of its settings to change."""
    copy_label_studio(tmp_path)
    port, token = free_port(), stack.facts["label_studio_token"]
    environment = {
        **os.environ,
        "LABEL_STUDIO_BASE_DATA_DIR": str(tmp_path / "label-studio-data"),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
    }
    log = (tmp_path / "log").open("w")
    program = RUN_DIR / "label-studio" / "bin" / "label-studio"
    process = subprocess.Popen(
        [str(program), "start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1"],
        env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        import httpx
        from live import config_of

        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/health", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline
                time.sleep(0.3)
        made = httpx.post(
            f"{url}/api/projects/",
            headers={"Authorization": f"Token {token}"},
            json={"title": "guarded", "label_config": config_of(["red", "blue"])},
            timeout=60,
        ).json()
        done = stack.cli(
            "connect", str(made["id"]), LABEL_STUDIO_URL=url, LABEL_STUDIO_TOKEN=token, DATA_DIR=str(tmp_path / "d")
        )
        assert done.returncode == 1
        assert "USER_ADDITIONAL_BANNED_SUBNETS" in done.stderr, done.stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
