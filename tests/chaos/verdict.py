"""What must be true at the end: every accepted job ended once, what is published is whole, and nothing is left."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.arena import LISTS, OLD, Arena, Kill, processes
from tests.chaos.watcher import SCRATCH
from transcoder import Status
from transcoder.ledger import FINISHED

NO_FAULT_OF_OURS = ("NoRouteWorked", "NoRoute", "WorkersLost", "Quarantined")
"""How a job of a whole source may fail: its device was broken and it required one; it lost worker after worker."""
EMPTY = ("transcoder:state:queued", "transcoder:state:running", "transcoder:heartbeats", "transcoder:later")
EMPTY_TOO = ("transcoder:aside", "transcoder:rising")

AFTERMATH = 6.0
"""Seconds after an outage in which nothing is taken from anybody: a whole lease, and the time to reconnect."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """A job whose worker was killed or stopped: seconds until it was taken back, and until it was begun again."""

    kill: Kill
    job: Status
    taken_back: float
    begun: float

    def was_quiet(self, troubles: Sequence[tuple[float, float]]) -> bool:
        """Nothing else kept it up: Redis and every way to it were whole, and had been for long enough."""
        return not any(begin < self.kill.at + self.begun and self.kill.at < end + AFTERMATH for begin, end in troubles)


@dataclass
class Verdict:
    """`wrong` must be empty."""

    wrong: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    encodes: int = 0
    published: int = 0
    recoveries: list[Recovery] = field(default_factory=list)
    own: list[float] = field(default_factory=list)


def left_over(arena: Arena) -> list[str]:
    """What is still there that must be gone once all jobs have ended; some of it goes within seconds."""
    left = [f"scratch: {path}" for folder in (arena.disk, arena.small) for path in folder.glob(f"{SCRATCH}*")]
    left += [f"a process: {' '.join(words)[:200]}" for _, _, words in processes() if is_ffmpeg(words)]
    left += [f"{arena.plain.llen(key)} messages in {key!r}" for key in LISTS if arena.plain.llen(key)]
    for key in arena.plain.scan_iter("transcoder:*", count=1000):
        name = str(key)
        if name in (*EMPTY, *EMPTY_TOO) or name.startswith(
            ("transcoder:waiting:", "transcoder:prefer:", "transcoder:target:", "transcoder:message:")
        ):
            left.append(f"{name} in Redis: {arena.plain.dump(name) and contents(arena, name)}")
        elif name.startswith(("transcoder:slots:", "transcoder:space:")) and name.endswith((":leases", ":heard")):
            # one that ran out counts for nobody, and goes when the next job asks for a slot or for space
            held = arena.plain.zrangebyscore(name, time.time(), "+inf")
            left += [f"a slot or space, {name}: {held}"] if held else []
    return left


def contents(arena: Arena, key: str) -> object:
    match arena.plain.type(key):
        case "zset":
            return arena.plain.zrange(key, 0, 5)
        case "hash":
            return arena.plain.hgetall(key)
        case _:
            return arena.plain.get(key)


def is_ffmpeg(words: Sequence[str]) -> bool:
    return bool(words) and Path(words[0]).name in ("ffmpeg", "ffprobe")


def judge(arena: Arena) -> Verdict:
    """Look at every record, every file and every log, once the fleet has come to rest."""
    verdict = Verdict()
    recorded = {str(job) for job in arena.plain.zrange("transcoder:jobs", 0, -1)}
    if stray := recorded.symmetric_difference(arena.accepted):
        verdict.wrong.append(f"accepted and recorded are not the same: {sorted(stray)}")
    statuses = [arena.client.status(job) for job in sorted(recorded.intersection(arena.accepted))]
    for status in statuses:
        _judge_record(arena, verdict, status)
    _judge_files(arena, verdict, statuses)
    verdict.wrong += [f"seen: {what}" for what in arena.watcher.wrong]
    _judge_logs(arena, verdict)
    verdict.recoveries = [found for kill in arena.kills for found in recoveries(kill, statuses)]
    return verdict


def _judge_record(arena: Arena, verdict: Verdict, status: Status) -> None:
    order = arena.accepted[status.id]
    verdict.states[status.state] += 1
    verdict.attempts += status.attempts
    verdict.encodes += sum(moment.what == "encoding" for moment in status.history)
    ends = [moment.what for moment in status.history if moment.what in FINISHED]
    if ends != [status.state] or status.history[-1].what != status.state:
        verdict.wrong.append(f"job {status.id} ended as {ends} and is {status.state}")
    if status.state == "published":
        verdict.published += 1
        if status.result:
            verdict.own.append(status.result["timings"]["total"])
        if order.source in ("cut short", "poison"):
            verdict.wrong.append(f"job {status.id} published what cannot be whole: {order}")
        return
    kind = str((status.error or {}).get("kind"))
    verdict.errors[f"{status.state}: {kind} ({order.source}, {order.policy})"] += 1
    whole = order.source not in ("cut short", "poison")
    if status.state in ("failed", "quarantined") and whole and kind not in NO_FAULT_OF_OURS:
        verdict.wrong.append(f"job {status.id} of a whole source failed: {status.error} {order}")


def _judge_files(arena: Arena, verdict: Verdict, statuses: Sequence[Status]) -> None:
    expected: dict[Path, dict[str, Any]] = {}
    manifests = {}
    for status in statuses:
        if status.state != "published" or status.result is None:
            continue
        manifests[Path(status.result["manifest"])] = status
        for output in status.result["outputs"]:
            if Path(output["path"]) in expected:
                verdict.wrong.append(f"{output['path']} was published by two jobs")
            expected[Path(output["path"])] = output
    found = {
        path for folder in (arena.disk, arena.small) for path in folder.iterdir() if not path.name.startswith(SCRATCH)
    }
    old = {path for path in found - expected.keys() - manifests.keys() if path.read_bytes() == OLD}
    for path in sorted(found - expected.keys() - manifests.keys() - old):
        verdict.wrong.append(f"{path} belongs to no published job")
    for path in sorted({*expected, *manifests} - found):
        verdict.wrong.append(f"{path} is missing, and its job is published")
    for path, status in manifests.items():
        if path in found:
            _judge_manifest(arena, verdict, path, status)
    with ThreadPoolExecutor(2) as pool:
        verdict.wrong += [why for why in pool.map(_judge_file, *zip(*expected.items(), strict=True)) if why]


def _judge_manifest(arena: Arena, verdict: Verdict, path: Path, status: Status) -> None:
    content = json.loads(path.read_text())
    assert status.result
    if content["job"] != status.id:
        verdict.wrong.append(f"{path} is the manifest of {content['job']}")
    if json.loads(json.dumps(content["result"]["outputs"])) != status.result["outputs"]:
        verdict.wrong.append(f"{path} and the record of {status.id} tell of other outputs")
    appeared = arena.watcher.seen.get(path, [])
    if len(set(appeared)) != 1:
        verdict.wrong.append(f"{path} appeared {len(appeared)} times with {len(set(appeared))} contents")
    for output in status.result["outputs"]:
        if arena.watcher.seen.get(Path(output["path"]), [])[-1:] != [output["sha256"]]:
            verdict.wrong.append(f"{output['path']} appeared last with another content than its manifest's")


def _judge_file(path: Path, output: dict[str, Any]) -> str | None:
    """Why a published file is not what its manifest says, if it is not."""
    if not path.exists():
        return None  # said before
    content = path.read_bytes()
    if (len(content), hashlib.sha256(content).hexdigest()) != (output["bytes"], output["sha256"]):
        return f"{path} has another size or checksum than its manifest says"
    command = ["ffprobe", "-v", "error", "-count_packets", "-show_streams", "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    streams = json.loads(done.stdout or "{}").get("streams", [])
    video: dict[str, Any] = next((one for one in streams if one["codec_type"] == "video"), {})
    told = (
        video.get("codec_name"),
        video.get("width"),
        video.get("height"),
        int(video.get("nb_read_packets", 0)) or None,
    )
    if done.returncode or done.stderr or told != tuple(output[name] for name in ("codec", "width", "height", "frames")):
        return f"{path} is {told} to ffprobe, which says {done.stderr!r}, and {output} in its manifest"
    played = ["ffmpeg", "-nostdin", "-v", "error", "-xerror", "-i", str(path), "-f", "null", "-"]
    done = subprocess.run(played, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode or done.stderr:
        return f"{path} cannot be played to its end: {done.stderr!r}"
    return None


def _judge_logs(arena: Arena, verdict: Verdict) -> None:
    for name, worker in arena.workers.items():
        for line in worker.log().splitlines():
            if '"traceback"' in line or line.startswith("Traceback") or "met a bug" in line:
                verdict.wrong.append(f"{name} logged {line[:1500]}")


def recoveries(kill: Kill, statuses: Sequence[Status]) -> list[Recovery]:
    """How long after a kill each job that its worker had was taken back, and begun again, by whomever."""
    found = []
    for status in statuses:
        moments = [moment for moment in status.history if moment.what in ("running", "queued", *FINISHED)]
        before = [moment for moment in moments if moment.at < kill.at]
        after = [moment for moment in moments if moment.at >= kill.at]
        had = before and before[-1].what == "running" and before[-1].detail.startswith(kill.owner)
        if had and after and after[0].what == "queued" and "not heard of" in after[0].detail:
            again = next((moment.at for moment in after if moment.what == "running"), None)
            if again is not None:
                found.append(Recovery(kill, status, after[0].at - kill.at, again - kill.at))
    return found
