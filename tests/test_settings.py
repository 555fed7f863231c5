"""Settings: read from the environment, refused by name, documented."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transcoder import settings
from transcoder.errors import SettingsError
from transcoder.settings import Settings

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "settings.md"


def test_defaults_hold_where_nothing_is_set() -> None:
    found = settings.read({})
    assert found == Settings()
    assert found.broker_url == "redis://127.0.0.1:6379/0"
    assert (found.metrics_port, found.retention, found.umask) == (9464, 604_800, 0o022)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        pytest.param("media_roots", "/media", ("/media",), id="one folder"),
        pytest.param("media_roots", "/media:/mnt/a b/:", ("/media", "/mnt/a b"), id="folders"),
        pytest.param("umask", "002", 2, id="an octal umask"),
        pytest.param("umask", "0o27", 0o27, id="a umask in Python's way"),
        pytest.param("owner", "1000:0", (1000, 0), id="an owner"),
        pytest.param("stall_limit", "90", 90.0, id="seconds"),
        pytest.param("stall_limit", "1.5m", 90.0, id="minutes"),
        pytest.param("retention", "30d", 30 * 86_400.0, id="days"),
        pytest.param("metrics_port", "0", 0, id="no port"),
        pytest.param("owner", "", None, id="empty counts as unset"),
        pytest.param("broker_url", "rediss://:p%40ss@host:6380/2", "rediss://:p%40ss@host:6380/2", id="TLS"),
    ],
)
def test_a_variable_is_read(name: str, text: str, value: object) -> None:
    assert getattr(settings.read({settings.variable(name): text}), name) == value


@pytest.mark.parametrize(
    ("variable", "text", "why"),
    [
        ("TRANSCODER_MEDIA_ROOTS", "media", "absolute path"),
        ("TRANSCODER_MEDIA_ROOTS", "/media/../etc", "absolute path"),
        ("TRANSCODER_CACHE_FOLDER", "cache", "absolute path"),
        ("TRANSCODER_CAPACITY_FILE", "capacity.json", "a file is an absolute path"),
        ("TRANSCODER_UMASK", "999", "octal"),
        ("TRANSCODER_UMASK", "7777", "less than or equal"),
        ("TRANSCODER_OWNER", "media:media", "uid:gid"),
        ("TRANSCODER_STALL_LIMIT", "soon", "90s, 15m"),
        ("TRANSCODER_STALL_LIMIT", "0", "greater than 0"),
        ("TRANSCODER_STALL_LIMIT", "nan", "90s, 15m"),
        ("TRANSCODER_METRICS_PORT", "65536", "less than or equal to 65535"),
        ("TRANSCODER_LOG_LEVEL", "loud", "'debug', 'info'"),
        ("TRANSCODER_BROKER_URL", "amqp://rabbit", "redis://"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(variable: str, text: str, why: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings.read({variable: text})
    assert refused.value.what.startswith(variable)
    assert why in refused.value.what
    assert variable in refused.value.next_step


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        settings.read({"TRANSCODER_UMASK": "x", "TRANSCODER_THREADS": "-1"})
    assert "TRANSCODER_UMASK is 'x'" in refused.value.what
    assert "TRANSCODER_THREADS is '-1'" in refused.value.what


def test_no_error_and_no_repr_shows_the_password_of_the_broker() -> None:
    with pytest.raises(SettingsError) as refused:
        settings.read({"TRANSCODER_BROKER_URL": "amqp://user:geheim@rabbit"})
    assert "geheim" not in str(refused.value)
    assert "geheim" not in repr(settings.read({"TRANSCODER_BROKER_URL": "redis://:geheim@host"}))


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "broker").write_text("redis://:geheim@host:6379/1\n")
    found = settings.read({"TRANSCODER_BROKER_URL_FILE": str(tmp_path / "broker")})
    assert found.broker_url == "redis://:geheim@host:6379/1"


def test_a_variable_and_its_file_do_not_go_together(tmp_path: Path) -> None:
    both = {"TRANSCODER_BROKER_URL": "redis://a", "TRANSCODER_BROKER_URL_FILE": str(tmp_path / "broker")}
    with pytest.raises(SettingsError, match="both TRANSCODER_BROKER_URL and TRANSCODER_BROKER_URL_FILE"):
        settings.read(both)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"TRANSCODER_BROKER_URL_FILE: cannot read .*gone: No such file"):
        settings.read({"TRANSCODER_BROKER_URL_FILE": str(tmp_path / "gone")})


def test_a_variable_that_is_no_setting_is_reported_with_the_one_that_was_meant() -> None:
    (typo, stranger) = settings.unknown({"TRANSCODER_METRIC_PORT": "1", "TRANSCODER_XYZZY": "1", "PATH": "/bin"})
    assert "did you mean TRANSCODER_METRICS_PORT?" in typo
    assert "TRANSCODER_XYZZY is no setting" in stranger


def test_settings_and_their_files_are_no_strangers() -> None:
    names = [settings.variable(field) for field in Settings.model_fields]
    assert settings.unknown({name: "x" for known in names for name in (known, f"{known}_FILE")}) == ()


def test_what_kubernetes_sets_for_a_service_called_transcoder_is_passed_over() -> None:
    made = {
        "TRANSCODER_SERVICE_HOST": "10.0.0.1",
        "TRANSCODER_PORT": "tcp://10.0.0.1:80",
        "TRANSCODER_PORT_80_TCP_ADDR": "10.0.0.1",
        "TRANSCODER_METRICS_SERVICE_PORT_HTTP": "9464",
        "TRANSCODER_METRICS_PORT": "tcp://10.0.0.1:9464",
    }
    assert settings.unknown(made) == ()
    assert settings.read(made).metrics_port == 9464


def test_a_worker_needs_media_roots_and_a_run_has_its_folder() -> None:
    with pytest.raises(SettingsError, match="TRANSCODER_MEDIA_ROOTS is not set"):
        settings.read({}).policy()
    assert settings.read({}).policy(("/here",)).roots == ("/here",)
    assert settings.read({"TRANSCODER_MEDIA_ROOTS": "/media"}).policy(("/here",)).roots == ("/media",)


def test_the_policy_takes_every_setting_of_its_name() -> None:
    environment = {
        "TRANSCODER_MEDIA_ROOTS": "/m",
        "TRANSCODER_FFMPEG": "/opt/ffmpeg",
        "TRANSCODER_FFPROBE": "/opt/ffprobe",
        "TRANSCODER_PROBE_LIMIT": "1",
        "TRANSCODER_FIRST_FRAME_LIMIT": "2",
        "TRANSCODER_STALL_LIMIT": "3",
        "TRANSCODER_MAX_PIXELS": "4",
        "TRANSCODER_WALL_LIMIT": "1h",
        "TRANSCODER_CPU_LIMIT": "2h",
        "TRANSCODER_MAX_ALLOC": "2000000",
        "TRANSCODER_MAX_FILE": "3000000",
        "TRANSCODER_NICE": "7",
        "TRANSCODER_MANIFEST_FOLDER": "/manifests",
        "TRANSCODER_UMASK": "002",
        "TRANSCODER_OWNER": "5:6",
        "TRANSCODER_HARDWARE_DECODE": "no",
        "TRANSCODER_TRIAL_LIMIT": "7",
        "TRANSCODER_DRI": "/mine/dri",
        "TRANSCODER_SYSFS": "/mine/sys",
        "TRANSCODER_PROC": "/mine/proc",
    }
    found = settings.read(environment)
    policy = found.policy()
    shared = [name for name in type(policy).__dataclass_fields__ if name != "roots"]
    assert len(shared) == len(environment) - 1
    for name in shared:
        assert getattr(policy, name) == getattr(found, name) != getattr(Settings(), name), name


@pytest.mark.parametrize(
    ("home", "cache", "folder"),
    [
        ("/home/ada", "", "/home/ada/.cache/transcoder"),
        ("/home/ada", "/var/cache", "/var/cache/transcoder"),
        ("/home/ada", "relative", "/home/ada/.cache/transcoder"),
        ("/", "", f"/tmp/{os.getuid()}/transcoder"),
    ],
)
def test_the_cache_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch, home: str, cache: str, folder: str) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert settings.read({}).cache_folder == folder


def test_the_document_is_the_list_of_settings() -> None:
    regenerate = (
        "python -c \"from transcoder.settings import documentation as d; print(d(), end='')\" > docs/settings.md"
    )
    assert DOCUMENT.read_text() == settings.documentation(), regenerate


def test_every_setting_has_its_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith("."), name


def test_reading_them_imports_neither_celery_nor_the_command_line() -> None:
    heavy = "{'pydantic_settings', 'celery', 'typer', 'rich', 'yaml', 'prometheus_client'}"
    words = f"import sys, transcoder.settings as s; s.read(); print(*sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == ""
