"""Every Compose file is valid by itself beside compose.yaml, without a .env, and every service of it is kept small."""

import json
import os
import subprocess
from typing import Any

import pytest

from tests.containers import stack
from tests.containers.stack import COMPOSE, TARGETS, Target, docker, inspect

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OVERLAYS = sorted(file.name.split(".")[1] for file in COMPOSE.glob("compose.*.yaml"))
ONES = [(), *((overlay,) for overlay in OVERLAYS), ("gpu", "stacks"), ("qsv", "stack-each"), ("gpu", "publish")]


def files(*overlays: str) -> list[str]:
    names = ["compose.yaml", *(f"compose.{overlay}.yaml" for overlay in overlays)]
    return [word for name in names for word in ("--file", str(COMPOSE / name))]


def services(*overlays: str) -> dict[str, dict[str, Any]]:
    """What Compose makes of them where nothing is set: no .env, no variable."""
    words = ["compose", "--env-file", "/dev/null", *files(*overlays), "config", "--format", "json"]
    found: dict[str, dict[str, Any]] = json.loads(docker(*words))["services"]
    return found


@pytest.mark.parametrize("overlays", ONES, ids=lambda overlays: "+".join(overlays) or "compose")
class TestFiles:
    def test_it_passes_config_without_a_word_where_no_env_is(self, overlays: tuple[str, ...]) -> None:
        command = ["docker", "compose", "--env-file", "/dev/null", *files(*overlays), "config", "--quiet"]
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_every_service_is_hardened(self, overlays: tuple[str, ...]) -> None:
        for name, service in services(*overlays).items():
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service["user"].split(":")[0] not in ("", "0", "root"), name
            assert int(service["mem_limit"]) > 0, name
            assert service["pids_limit"] > 0, name
            assert service["ulimits"]["nofile"]["hard"] <= 65_536, name
            assert service["restart"] == "unless-stopped", name
            assert service["stop_grace_period"], name
            assert all("size=" in mount for mount in service.get("tmpfs", ())), name
            assert service["logging"]["options"]["max-size"], name
            assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service), name

    def test_devices_are_named_one_by_one(self, overlays: tuple[str, ...]) -> None:
        for service in services(*overlays).values():
            mapped = [device["source"] for device in service.get("devices", ())]
            assert all(path.startswith("/dev/dri/renderD") for path in mapped)
            assert not [mount for mount in service.get("volumes", ()) if mount.get("source", "").startswith("/dev")]

    def test_nothing_is_published_but_to_this_host(self, overlays: tuple[str, ...]) -> None:
        ports = [port for service in services(*overlays).values() for port in service.get("ports", ())]
        assert {port.get("host_ip") for port in ports} <= {"127.0.0.1"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
def test_up_builds_the_image_that_is_not_there(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    built = stack.image(target)
    overlays = {"software": (), "vaapi": ("gpu",), "qsv": ("qsv",)}[target]
    monkeypatch.setenv("IMAGE", "transcoder:test-compose")
    try:
        docker("compose", "--env-file", "/dev/null", *files(*overlays), "build", "--quiet", "worker", timeout=900)
        layers = [inspect(name)["RootFS"]["Layers"] for name in (built, f"transcoder:test-compose-{target}")]
        assert layers[0] == layers[1]
    finally:
        docker("image", "rm", f"transcoder:test-compose-{target}", check=False)
