"""The agent of a container: it plans as the product does, starts its stacks at a given moment, and tells what they did.

A line of JSON on stdin is a question, a line on stdout the answer; the first line says that it is there. When stdin
ends, at any moment, its ffmpegs are killed, what they wrote is removed, and it ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import selectors
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from transcoder.bench import sources
from transcoder.bench.working import Working, pss
from transcoder.children import dying_with_parent, run
from transcoder.version import __version__

if TYPE_CHECKING:
    from transcoder.spec import JobSpec

OUTPUT: Final = "{output}"
"""Stands in a stack's words for the file that it writes."""

PERIOD = 0.1
"""Seconds between two reports of ffmpeg, which cost it nothing that can be measured."""

_TICK = 0.02
_PSS_PERIOD = 0.25
_COUNTERS_PERIOD = 0.1
_REAPING = 0.002
_LAST_WORDS = 2000
_PROBE_LIMIT = 60.0

_REPORTING = ("-y", "-nostats", "-stats_period", str(PERIOD), "-progress", "pipe:1", "-loglevel", "level+error")

# says that it is there, and becomes ffmpeg when it reads a line: ffmpeg's start-up is not before the common moment
_AT_THE_BARRIER = "echo ready=1; read -r released || exit 125;"

Json = dict[str, Any]


class Agent:
    """Answers questions in the folder that is its own, below what all cells share."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._children: set[int] = set()
        self._over = threading.Lock()
        self._counted: dict[str, int] = {}
        self._working: Working | None = None

    def serve(self) -> None:
        """Answer until stdin ends, which ends the process."""
        asked: queue.SimpleQueue[Json] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(asked,), daemon=True).start()
        os.makedirs(self.folder, exist_ok=True)
        self._say({"ready": __version__, "sources": sources.digest(), "pid": os.getpid()})
        answers: Mapping[str, Callable[[Json], Json]] = {
            "plan": plan,
            "make": self.make,
            "run": self.run,
            "work": self.work,
            "watch": self.watch,
            "used": self.used,
        }
        while True:
            question = asked.get()
            try:
                self._say({"answer": answers[question["ask"]](question)})
            except Exception as failed:  # whoever asks must learn of it, whatever it is
                self._say({"error": _told(failed)})

    def _listen(self, asked: queue.SimpleQueue[Json]) -> None:
        for line in sys.stdin.buffer:
            asked.put(json.loads(line))
        self.end()

    def end(self) -> None:
        """Kill what runs, remove what it wrote, and end the process."""
        self._over.acquire()  # no child is started from now on
        for child in tuple(self._children):
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        for child in tuple(self._children):
            with suppress(ChildProcessError):  # until it has ended it may write
                os.waitpid(child, 0)
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(0)

    def _say(self, message: Json) -> None:
        with suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    def make(self, asked: Json) -> Json:
        """Run `argv` to its end: how a clip is made by the ffmpeg that reads it."""
        ended = run(asked["argv"], asked["limit"])
        if ended.returncode != 0:
            raise RuntimeError(f"{asked['argv'][0]} ended with {ended.returncode}: {_last(ended.stderr)}")
        return {}

    def work(self, asked: Json) -> Json:
        """Start a worker with `stacks` places, which hears from Redis by the socket `redis`."""
        with self._over:
            self._working = Working(self.folder, asked)
            self._children.add(self._working.pid)
        return {}

    def watch(self, asked: Json) -> Json:
        """What the worker uses counts from now on."""
        assert self._working
        self._working.watch()
        return {}

    def used(self, asked: Json) -> Json:
        """What it used since then."""
        assert self._working
        return self._working.used()

    def run(self, asked: Json) -> Json:
        """Release `stacks` stacks of `argv` at the moment `at` of CLOCK_MONOTONIC; {"late": seconds} where it is past.

        `device` tells that a GPU's counters are to be read, `limit` the seconds after which a stack is killed.
        """
        throttled, cpu = _throttled(), _cpu()
        stacks: list[_Stack] = []
        try:
            for number in range(asked["stacks"]):
                with self._over:
                    stack = _Stack(asked["argv"], f"{self.folder}/out-{number}.mp4")
                    self._children.add(stack.pid)
                stacks.append(stack)
            late = _gathered(stacks, asked["at"])
            if late:
                return {"late": late}
            _released(stacks, asked["at"])
            _Following(stacks, asked["at"], _proc() if asked["device"] else None).follow(asked["limit"])
            seen = [self._seen(one, asked["at"]) for one in stacks]
            return {"throttled": _throttled() - throttled, "cpu": _cpu() - cpu, "stacks": seen}
        finally:
            for one in stacks:
                one.end()
                self._children.discard(one.pid)
                with suppress(FileNotFoundError):
                    os.unlink(one.output)

    def _seen(self, stack: _Stack, at: float) -> Json:
        """What a stack did, with what it made read back: the window of time is over by now."""
        made = stack.returncode == 0 and os.path.exists(stack.output)
        digest = _digest(stack.output) if made else ""
        frames = self._frames(stack.output, digest) if made else (stack.stamps[-1]["frames"] if stack.stamps else 0)
        return {
            "started": stack.started - at,
            "ended": stack.ended - at,
            "frames": frames,
            "stamps": stack.stamps,
            "cpu_user": stack.user,
            "cpu_system": stack.system,
            "switches": stack.switches,
            "pss": stack.pss,
            "engines": stack.engines(),
            "digest": digest,
            "trouble": stack.trouble,
        }

    def _frames(self, path: str, digest: str) -> int:
        """How many pictures are in the file; asked once for the same bytes, since it costs a tenth of a second."""
        if digest not in self._counted:
            self._counted[digest] = packets(path)
        return self._counted[digest]


class _Stack:
    """One ffmpeg, which waits at the barrier."""

    def __init__(self, argv: Sequence[str], output: str) -> None:
        self.output = output
        self.started = self.ended = 0.0
        self.stamps: list[Json] = []
        self.user = self.system = 0.0
        self.switches = self.pss = 0
        self.trouble = ""
        self.returncode: int | None = None
        self.said = b""
        self._gpu: Any = None
        words = (argv[0], *_REPORTING, *(word.replace(OUTPUT, output) for word in argv[1:]))
        self.child = subprocess.Popen(
            dying_with_parent(words, _AT_THE_BARRIER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.child.pid

    def go(self) -> None:
        assert self.child.stdin
        with suppress(BrokenPipeError):
            self.child.stdin.write(b"go\n")
            self.child.stdin.close()

    def reaped(self) -> bool:
        """Whether it has ended; then its use of the CPU is known."""
        if self.returncode is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.ended = monotonic()
                self.returncode = self.child.returncode = os.waitstatus_to_exitcode(status)
                self.user, self.system = used.ru_utime, used.ru_stime
                self.switches = used.ru_nvcsw + used.ru_nivcsw
                if self.returncode and not self.trouble:
                    self.trouble = f"ffmpeg ended with {self.returncode}: {_last(self.said)}"
        return self.returncode is not None

    def weigh(self) -> None:
        """Read how much memory is its own, with its share of what others have mapped too."""
        self.pss = max(self.pss, pss(self.pid))

    def count(self, proc: str) -> None:
        """Read what the GPU's engines did for it so far."""
        from transcoder import fdinfo, usage

        self._gpu = self._gpu or usage.Meter()
        self._gpu.see(fdinfo.clients(proc, [self.pid]), monotonic())

    def engines(self) -> dict[str, float]:
        """Seconds by engine; empty without a GPU or where its driver counts nothing."""
        found = self._gpu.usage() if self._gpu else None
        return dict(found.engines) if found else {}

    def kill(self, why: str) -> None:
        self.trouble = self.trouble or why
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """It is gone, however far it came."""
        if self.returncode is None:
            self.kill("it was ended")
        while not self.reaped():
            sleep(_REAPING)
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


def _gathered(stacks: Sequence[_Stack], at: float) -> float:
    """Wait until all stand at the barrier; the seconds that it took too long, or 0."""
    for stack in stacks:
        assert stack.child.stdout
        with selectors.DefaultSelector() as pipe:
            pipe.register(stack.child.stdout, selectors.EVENT_READ)
            if not pipe.select(max(0.0, at - monotonic())):
                return max(monotonic() - at, 1e-6)
    return max(0.0, monotonic() - at)


def _released(stacks: Sequence[_Stack], at: float) -> None:
    sleep(max(0.0, at - monotonic()))
    for stack in stacks:
        stack.started = monotonic()
        stack.go()


class _Following:
    """Reads what the stacks report, until all have ended. `proc` is where a GPU's counters are, None for no GPU."""

    def __init__(self, stacks: Sequence[_Stack], at: float, proc: str | None) -> None:
        from transcoder.progress import Reader

        self._stacks, self._at, self._proc = stacks, at, proc
        self._readers = {stack.pid: Reader() for stack in stacks}
        self._weighed = self._counted = 0.0

    def follow(self, limit: float) -> None:
        """To the end of all, or for so many seconds from the start, after which they are killed."""
        with selectors.DefaultSelector() as pipes:
            for stack in self._stacks:
                for pipe in (stack.child.stdout, stack.child.stderr):
                    assert pipe
                    pipes.register(pipe, selectors.EVENT_READ, stack)
            while pipes.get_map():
                for key, _ in pipes.select(_TICK):
                    if data := os.read(key.fd, 65536):
                        self._take(key.data, data, said=key.fileobj is key.data.child.stderr)
                    else:
                        pipes.unregister(key.fileobj)
                self._look(limit)
        while not all(stack.reaped() for stack in self._stacks):
            sleep(_REAPING)
            self._look(limit)  # which asks each of them

    def _take(self, stack: _Stack, data: bytes, *, said: bool) -> None:
        now = monotonic()
        if said:
            stack.said = (stack.said + data)[-_LAST_WORDS:]
            return
        for report in self._readers[stack.pid].feed(data):
            if self._proc and report.last:  # after it ffmpeg closes the device, and the counters are gone
                stack.count(self._proc)
            if report.frame and not stack.stamps:  # a short run may end before the next look
                stack.weigh()
            if report.frame:
                stack.stamps.append({"at": now - self._at, "frames": report.frame})

    def _look(self, limit: float) -> None:
        now = monotonic()
        running = [stack for stack in self._stacks if not stack.reaped()]
        if now - self._weighed > _PSS_PERIOD:
            self._weighed = now
            for stack in running:
                stack.weigh()
        if self._proc and now - self._counted > _COUNTERS_PERIOD:
            self._counted = now
            for stack in running:
                stack.count(self._proc)
        if now - self._at > limit:
            for stack in running:
                stack.kill(f"it did not end within {limit:g} s")


def plan(asked: Json) -> Json:
    """What the product plans for this source here: `accel` is software, vaapi, qsv or auto.

    One output without sound of `codec` and at most `height` lines, with one thread for decoding, filtering and
    encoding each, so that what software makes is the same each time.

    Raises:
        TranscoderError: as `transcoder run` would.
    """
    from dataclasses import replace

    from transcoder import settings
    from transcoder.plan import plan as planned
    from transcoder.probe import probe
    from transcoder.survey import survey

    site = settings.read()
    source = asked["source"]
    policy = replace(site.policy(default_roots=(os.path.dirname(source),)), roots=(os.path.dirname(source),))
    media = probe(source, policy)
    machine = survey(policy, site.cache_folder, threads=1)
    job = spec(source, f"{os.path.dirname(source)}/never-written.mp4", {"device": site.device, **asked})
    found = planned(job, media, machine, policy.max_pixels)
    command, picture, video = found.commands[0], found.rungs[0].picture, media.main_video
    assert picture
    assert video
    device = machine.device(command.route.device)
    return {
        "argv": command.argv(policy.ffmpeg, [OUTPUT]),
        "accel": command.route.api,
        "route": command.route.name,
        "width": picture.width,
        "height": picture.height,
        "frames": packets(source, policy.ffprobe),
        "frame_rate": float(picture.fps or video.rate or 25),
        "device": {"node": device.node, "address": device.id, "driver": device.va_driver or device.driver or ""}
        if device
        else None,
        "ffmpeg": machine.build.version,
        "ffmpeg_path": policy.ffmpeg,
    }


def spec(source: str, target: str, asked: Json) -> JobSpec:
    """The job that a stack is."""
    from transcoder.spec import Acceleration, JobSpec, Output, Video

    wishes = {"software": Acceleration(policy="never"), "auto": Acceleration()}
    accel = wishes.get(asked["accel"]) or Acceleration(
        policy="require", apis=(asked["accel"],), device=asked.get("device")
    )
    video = Video(codec=asked["codec"], height=asked["height"], speed="fast")
    output = Output(video=video, audio=None, subtitles="drop")
    return JobSpec(source=source, target=target, outputs=(output,), acceleration=accel)


def packets(path: str, ffprobe: str = "ffprobe") -> int:
    """The packets of a file's first video stream, which are its pictures.

    Raises:
        RuntimeError: it cannot be read.
    """
    words = [ffprobe, "-v", "error", "-select_streams", "v:0", "-count_packets", "-show_entries"]
    ended = run([*words, "stream=nb_read_packets", "-of", "csv=p=0", path], _PROBE_LIMIT)
    if ended.returncode != 0 or not ended.stdout.strip(b" ,\n").isdigit():
        raise RuntimeError(f"{path} cannot be read back: {_last(ended.stderr)}")
    return int(ended.stdout.strip(b" ,\n"))


def _digest(path: str) -> str:
    """Of the whole file: the same ffmpeg writes the same packets as the same bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _proc() -> str:
    from transcoder import settings

    return settings.read().proc


def _cpu() -> float:
    """Seconds of the CPU that this process had so far, with all children that have ended."""
    return sum(os.times()[:4])


def _throttled() -> float:
    """Seconds for which a quota has held this cgroup back so far, by cgroup v2, then v1; 0 where nobody says."""
    for path, key, unit in (("cpu.stat", "throttled_usec", 1e6), ("cpu/cpu.stat", "throttled_time", 1e9)):
        with suppress(OSError), open(f"/sys/fs/cgroup/{path}", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value) / unit
    return 0.0


def _last(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _told(failed: Exception) -> Json:
    from transcoder.errors import TranscoderError

    if isinstance(failed, TranscoderError):
        return failed.as_record()
    return {"kind": type(failed).__name__, "what": str(failed), "next_step": ""}


def main() -> None:
    """Serve in the folder that the command line names."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of stdin ends it, and nothing before
    Agent(sys.argv[1]).serve()


if __name__ == "__main__":
    main()
