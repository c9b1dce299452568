"""Settings: defaults, every mistake at once, secrets never shown, which of two sources wins."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend.config import Settings, describe_settings, process_environment
from backend.errors import SettingsError
from backend.storage import Address

SECRETS = {"label_studio_token": "tok-1", "backend_password": "pass-2", "webhook_secret": "hook-3"}


def test_an_empty_environment_gives_the_defaults() -> None:
    """Everything has a default, so the demo needs no settings at all."""
    settings = Settings.from_mapping({})
    assert settings == Settings()
    assert settings.label_studio_url == "http://127.0.0.1:8080"
    assert settings.publish_wait_s == 0.6
    assert settings.data_dir == Path("data")
    assert settings.backbone_weights is None
    assert settings.acquisition == "information_density"


def test_values_are_read_by_their_name_in_capitals() -> None:
    """Whole numbers, seconds, switches, paths and addresses arrive in their own type; unknown names are left alone."""
    settings = Settings.from_mapping(
        {
            "SEED_SIZE": "12",
            "PUBLISH_WAIT_S": "0",
            "ALLOW_WEIGHTS_DOWNLOAD": "No",
            "BACKBONE_WEIGHTS": "~/weights.pt",
            "BACKEND_URL": "https://backend.example/",
            "seed_size": "13",
            "HOME": "/root",
        }
    )
    assert settings.seed_size == 12
    assert settings.publish_wait_s == 0.0
    assert settings.allow_weights_download is False
    assert settings.backbone_weights == Path("~/weights.pt").expanduser()
    assert settings.backend_url == "https://backend.example"


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_an_empty_value_counts_as_absent(empty: str) -> None:
    """Compose files pass `NAME=` for what is not set; that is no mistake."""
    assert Settings.from_mapping({"SEED_SIZE": empty, "BACKBONE_WEIGHTS": empty}) == Settings()


@pytest.mark.parametrize(("raw", "expected"), [(word, True) for word in ("1", "true", "YES", "On")])
def test_a_switch_may_be_written_in_several_ways(raw: str, expected: bool) -> None:
    """The spellings people try are all understood."""
    assert Settings.from_mapping({"ALLOW_WEIGHTS_DOWNLOAD": raw}).allow_weights_download is expected


MISTAKES = {
    "LABEL_STUDIO_URL": "127.0.0.1:8080",
    "BACKEND_URL": "http://",
    "BIND": "0.0.0.0",
    "REDIS_URL": "http://127.0.0.1:6379",
    "WEB_WORKERS": "0",
    "WEB_THREADS": "many",
    "SEED_SIZE": "1.5",
    "WINDOW_SIZE": "10001",
    "PUBLISH_WAIT_S": "-0.1",
    "VALIDATION_FILTER": "split=val",
    "TARGET_ACCURACY": "95",
    "PRELABEL_FROM": "80",
    "RECONCILE_INTERVAL_S": "soon",
    "IMAGE_TIMEOUT_S": "nan",
    "ACQUISITION": "Margin",
    "TRAIN": "backbone",
    "FINETUNE_FROM": "19",
    "RANDOM_STATE": str(2**31),
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "yaml",
    "ALLOW_WEIGHTS_DOWNLOAD": "perhaps",
    "MAX_IMAGE_PIXELS": "63",
    "DATA_DIR": "~no-such-user/data",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_kind_of_mistake_names_the_setting_what_came_and_what_was_expected(name: str) -> None:
    """One line of the message is enough to correct the setting."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({name: MISTAKES[name]})
    line = str(caught.value).splitlines()[1]
    assert line.strip().startswith((f"{name}: {MISTAKES[name]!r} is not ", f"{name}: the value given is not "))
    assert len(line.split(" is not ")[1]) > 5


def test_all_mistakes_are_reported_at_once() -> None:
    """Nobody has to start the service fifteen times to learn of fifteen mistakes."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping(MISTAKES)
    assert all(f"{name}: " in str(caught.value) for name in MISTAKES)
    assert len(str(caught.value).splitlines()) == 1 + len(MISTAKES)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://[::1", "http://:9090"])
def test_an_address_without_usable_host_or_port_is_a_mistake(url: str) -> None:
    """An address that no client could open is refused at the start, not at the first request."""
    with pytest.raises(SettingsError, match="BACKEND_URL"):
        Settings.from_mapping({"BACKEND_URL": url})


@pytest.mark.parametrize("share", ["0", "1", "-0.5", "nan", "95 %"])
def test_a_target_accuracy_is_a_share(share: str) -> None:
    """Between 0 and 1, neither of them: nothing is never wrong for certain."""
    with pytest.raises(SettingsError, match=r"TARGET_ACCURACY: .* is not a share above 0 and below 1, such as 0\.95"):
        Settings.from_mapping({"TARGET_ACCURACY": share})
    assert Settings.from_mapping({"TARGET_ACCURACY": "0.9"}).target_accuracy == 0.9


@pytest.mark.parametrize("number", ["inf", "nan", "1e999"])
def test_a_number_of_seconds_must_be_finite(number: str) -> None:
    """`inf` would be a wait without end."""
    with pytest.raises(SettingsError, match="PUBLISH_WAIT_S"):
        Settings.from_mapping({"PUBLISH_WAIT_S": number})


def test_secrets_stand_in_no_representation() -> None:
    """A log line with the settings gives nothing away."""
    shown = repr(Settings(**SECRETS)) + str(Settings(**SECRETS))
    assert not [secret for secret in SECRETS.values() if secret in shown]
    assert "8080" in shown


def test_the_password_of_redis_stands_in_no_representation() -> None:
    """REDIS_URL carries a password where Redis has one."""
    assert "pass-w0rd" not in repr(Settings(redis_url="redis://:pass-w0rd@redis:6379/0"))


def test_the_password_of_redis_stands_in_no_message() -> None:
    """A misspelled REDIS_URL is reported without its password."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({"REDIS_URL": "rediss//:pass-w0rd@redis:6379/0"})
    assert "REDIS_URL" in str(caught.value)
    assert "pass-w0rd" not in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    """What was started with is what runs."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed_size = 3  # type: ignore[misc]


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value given for one run overrides the file; what the environment leaves empty comes from the file."""
    env_file = tmp_path / ".env"
    env_file.write_text(
        'SEED_SIZE=11\nWINDOW_SIZE=12\n# a comment\nBACKEND_USER="from the file"\nexport WEB_WORKERS=3\n'
    )
    monkeypatch.setenv("SEED_SIZE", "21")
    monkeypatch.setenv("WINDOW_SIZE", " ")
    monkeypatch.delenv("BACKEND_USER", raising=False)
    monkeypatch.delenv("WEB_WORKERS", raising=False)
    settings = Settings.from_environment(env_file)
    assert (settings.seed_size, settings.window_size) == (21, 12)
    assert (settings.backend_user, settings.web_workers) == ("from the file", 3)
    assert Settings.from_environment().seed_size == 21


def test_a_mistake_in_the_file_is_a_settings_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is held to the same rules as the environment."""
    monkeypatch.delenv("SEED_SIZE", raising=False)
    env_file = tmp_path / ".env"
    env_file.write_text("SEED_SIZE=few\n")
    with pytest.raises(SettingsError, match="SEED_SIZE: 'few'"):
        Settings.from_environment(env_file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A mistyped --env-file does not silently start with the defaults."""
    with pytest.raises(SettingsError, match=r"nowhere\.env"):
        Settings.from_environment(tmp_path / "nowhere.env")


def test_every_setting_is_described_and_its_default_is_accepted() -> None:
    """The README's table is complete, secrets have no default, and every default passes its own check."""
    rows = describe_settings()
    assert [name for name, _, _ in rows] == [item.name.upper() for item in dataclasses.fields(Settings)]
    assert all(description for _, _, description in rows)
    defaults = {name: default for name, default, _ in rows}
    assert [defaults[name.upper()] for name in SECRETS] == ["", "", ""]
    assert Settings.from_mapping(defaults) == Settings()


def test_a_child_process_gets_our_environment_with_the_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The overrides win, and our own environment stays as it is."""
    monkeypatch.setenv("SEED_SIZE", "5")
    environment = process_environment(SEED_SIZE="6", EXTRA="7")
    assert (environment["SEED_SIZE"], environment["EXTRA"]) == ("6", "7")
    assert environment["PATH"] == os.environ["PATH"]
    assert os.environ["SEED_SIZE"] == "5"


@example({"DATA_DIR": "~no-such-user"})
@example({"WEB_WORKERS": "9" * 5000})
@example({"WEB_THREADS": "²"})
@given(st.dictionaries(st.sampled_from([item.name.upper() for item in dataclasses.fields(Settings)]), st.text()))
def test_any_text_gives_settings_or_one_settings_error(mapping: dict[str, str]) -> None:
    """No value makes another exception than ours."""
    with contextlib.suppress(SettingsError):
        Settings.from_mapping(mapping)


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ("s3://bucket/prefix/", Address("s3://bucket/prefix")),
        ("s3://bucket", Address("s3://bucket")),
        ("gs://bucket/a/b", Address("gs://bucket/a/b")),
        ("/srv/data", Path("/srv/data")),
        ("s3/data", Path("s3/data")),
    ],
)
def test_the_data_folder_may_be_at_an_address(raw: str, place: object) -> None:
    """With :// it is an address, without a path."""
    assert Settings.from_mapping({"DATA_DIR": raw}).data_dir == place


@pytest.mark.parametrize("raw", ["s3://", "s3:///prefix", "ftp://host/x", "s3://key:secret@bucket/x", "s3://b/x?y=1"])
def test_an_address_that_cannot_be_one_is_refused(raw: str) -> None:
    """Keys belong into the environment of the store's own libraries, where nothing shows them."""
    expected = "DATA_DIR: .* is not a folder, or an address such as s3://bucket/prefix"
    with pytest.raises(SettingsError, match=expected) as caught:
        Settings.from_mapping({"DATA_DIR": raw})
    assert "secret" not in str(caught.value)


def test_the_secrets_are_those_that_are_never_shown() -> None:
    """Token, passwords and webhook secret; of Redis' address the password, in both of its spellings."""
    settings = Settings.from_mapping(
        {
            "LABEL_STUDIO_TOKEN": "tok-en-1",
            "BACKEND_PASSWORD": "pass-w0rd",
            "WEBHOOK_SECRET": "s3cret",
            "REDIS_URL": "redis://user:p%40ss@127.0.0.1:6379/0",
        }
    )
    assert set(settings.secrets()) == {"tok-en-1", "pass-w0rd", "s3cret", "p%40ss", "p@ss"}
    assert Settings().secrets() == []
