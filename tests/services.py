"""Real services for the tests, the demo and the benchmarks: a private Redis and a real worker.

Each runs on a free port in a folder of its own, is ended by its process id, and dies with the process that started it.
Start them from a thread that lives as long as they shall: the kernel ends them when the starting *thread* ends.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"


class Service:
    """A process of our own, with its log in a file."""

    def __init__(self, command: Sequence[str], log_file: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command = ["setpriv", "--pdeathsig", "KILL", *command]
        self.log_file = log_file
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we then end the service in order
            )

    @property
    def pid(self) -> int:
        assert self.process is not None, "the service was not started"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def stop(self, patience: float = 20) -> int | None:
        """End it in order, or by force when that takes longer than `patience` seconds. Gives its exit code."""
        if self.process is None:
            return None
        if self.running:
            self.process.send_signal(signal.SIGCONT)  # a test may have paused it
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(patience)
        return self.kill()

    def kill(self) -> int | None:
        if self.process is None:
            return None
        self.process.kill()
        return self.process.wait()

    def wait_until(self, ready: Callable[[], bool], what: str, within: float = 20) -> None:
        deadline = time.monotonic() + within
        while not ready():
            if not self.running or time.monotonic() > deadline:
                how = f"was not ready within {within:g} s" if self.running else "ended at once"
                raise RuntimeError(f"{what} {how}. Its log:\n{self.log()}")
            time.sleep(0.02)


class Redis(Service):
    """A Redis server of our own, on a free port of the loopback interface."""

    def __init__(self, folder: Path, *, appendonly: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"redis://{LOOPBACK}:{self.port}/0"
        settings = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "dir": str(folder),
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": "always",  # what was written before a kill is there after it
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        super().__init__(["redis-server", *options], folder / "redis.log")

    def start(self) -> None:
        super().start()
        self.wait_until(self.answers, "Redis", within=10)

    def restart(self) -> None:
        """Stop it and start it at the same address: empty, or with its data if it is append-only."""
        self.stop()
        self.start()

    def answers(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")  # not -LOADING
        except OSError:
            return False


class Worker(Service):
    """A real `transcoder worker` in a process of its own."""

    def __init__(
        self,
        url: str,
        folder: Path,
        roots: Iterable[Path],
        *,
        concurrency: int,
        settings: Mapping[str, str],
        words: Sequence[str] = (),
        module: str = "transcoder",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.roots = tuple(roots)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSCODER_")}
        environment |= {
            "TRANSCODER_BROKER_URL": url,
            "TRANSCODER_MEDIA_ROOTS": ":".join(str(root) for root in self.roots),
            "TRANSCODER_METRICS_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        command = [sys.executable, "-m", module, "worker", "--concurrency", str(concurrency), *words]
        super().__init__(command, folder / f"worker-{self.port}.log", environment)

    def start(self) -> None:
        super().start()
        self.wait_until(self.healthy, "the worker")

    def healthy(self) -> bool:
        try:
            self.get("/healthz")
        except OSError:  # refused, timed out, or an HTTP status that says no
            return False
        return True

    def metrics(self) -> str:
        return self.get("/metrics")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}{path}", timeout=2) as response:
            text: bytes = response.read()
        return text.decode()


@contextlib.contextmanager
def private_redis(folder: Path, *, appendonly: bool = False) -> Iterator[Redis]:
    redis = Redis(folder, appendonly=appendonly)
    try:
        redis.start()
        yield redis
    finally:
        redis.stop(patience=5)


@contextlib.contextmanager
def worker(
    url: str,
    folder: Path,
    roots: Iterable[Path],
    *words: str,
    concurrency: int = 2,
    **env: str,
) -> Iterator[Worker]:
    """A worker that is ready; `env` is added to its environment, with the variables' full names."""
    service = Worker(url, folder, roots, concurrency=concurrency, settings=env, words=words)
    try:
        service.start()
        yield service
    finally:
        service.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port
