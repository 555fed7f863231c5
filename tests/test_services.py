"""The services that other tests rely on keep their own promises."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import redis as redis_client

from tests import services


@pytest.mark.slow
def test_an_append_only_redis_has_its_data_after_a_kill(tmp_path: Path) -> None:
    with services.private_redis(tmp_path / "redis", appendonly=True) as server:
        redis_client.Redis.from_url(server.url).set("song", "la")
        server.kill()
        server.start()
        assert redis_client.Redis.from_url(server.url).get("song") == b"la"


def test_a_redis_without_a_log_is_empty_after_a_restart(redis: services.Redis) -> None:
    redis_client.Redis.from_url(redis.url).set("song", "la")
    redis.restart()
    assert redis_client.Redis.from_url(redis.url).get("song") is None


@pytest.mark.slow
def test_a_service_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import os, pathlib
        from tests import services
        redis = services.Redis(pathlib.Path({str(tmp_path)!r}))
        redis.start()
        print(redis.pid, flush=True)
        os._exit(0)  # without a chance to clean up
    """)
    pid = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_service_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    service = services.Service(["sh", "-c", "echo no disk; exit 3"], tmp_path / "log")
    service.start()
    with pytest.raises(RuntimeError, match="no disk"):
        service.wait_until(lambda: False, "the service", within=5)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # dead, and waiting for its new parent to notice
