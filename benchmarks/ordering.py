"""`python -m benchmarks.ordering`: how busy the queue keeps hardware and software, over seeded mixes of jobs.

Simulated are the time, the workers and how long a job takes. Real are Redis, the ledger and the slots with their Lua
scripts, whose clock alone is replaced, the plan that says what a job runs on, and the order in which a free place asks
the queues. The efficiency of a mix is the lower bound of its time over the time that it took.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from statistics import fmean, median

from benchmarks import machine_room
from benchmarks.figures import quantile
from tests import services, values
from transcoder import placement, queue, scout
from transcoder.heart import TEND
from transcoder.ledger import STEPS, Claimed, Ledger, Report, Told
from transcoder.machine import SOFTWARE, Machine
from transcoder.plan import plan
from transcoder.settings import Settings
from transcoder.slots import Capacity, Slots
from transcoder.spec import SCHEMA, JobSpec, read

SLOWER = float(Settings.model_fields["software_slower"].default)
ERROR = 0.3
"""How far the size of a job is from the time that it takes: sigma of the logarithm of their ratio."""
GOAL_MEDIAN, GOAL_WORST = 0.95, 0.80
WAIT = float(Settings.model_fields["prefer_wait"].default)
RISE = float(Settings.model_fields["rise"].default)
_CLOCK = "simulated:now"
_START = 1_000_000_000.0


@dataclass(frozen=True)
class Site:
    """Places on hardware and in software, how much slower those are, and the jobs of a mix.

    How long a job takes on hardware is lognormal: `middle` seconds the median, `sigma` the spread of the logarithm.
    """

    hardware: int = 2
    software: int = 2
    slower: float = 5.0
    jobs: int = 20
    middle: float = 60.0
    sigma: float = 1.0

    def mix(self, seed: int) -> list[float]:
        """Seconds that each job takes on hardware, in the order in which they are submitted."""
        generator = Random(seed)
        return [self.middle * generator.lognormvariate(0, self.sigma) for _ in range(self.jobs)]

    @property
    def paces(self) -> list[float]:
        """Seconds that each place takes for a second of hardware's, the fastest first."""
        return [1.0] * self.hardware + [self.slower] * self.software


def bound(site: Site, mix: Sequence[float]) -> float:
    """Seconds that no order can go below, even if jobs could move while they run.

    All the work over all the places, and the longest k jobs over the fastest k.
    """
    speeds = [1 / pace for pace in site.paces]
    longest = sorted(mix, reverse=True)
    few = (sum(longest[:k]) / sum(speeds[:k]) for k in range(1, min(len(mix), len(speeds)) + 1))
    return max(sum(mix) / sum(speeds), *few)


def first_free(site: Site, mix: Sequence[float]) -> float:
    """Plain FIFO: the next job goes to the place that is free first. Seconds until all are done."""
    return _listed(site, mix, lambda free, _pace, _job: free)


def longest_first(site: Site, mix: Sequence[float]) -> float:
    """The longest job first, to the place where it ends first: as if all lengths were known. Seconds."""
    return _listed(site, sorted(mix, reverse=True), lambda free, pace, job: free + pace * job)


def _listed(site: Site, mix: Sequence[float], prefer: Callable[[float, float, float], float]) -> float:
    free = [0.0] * len(site.paces)
    for job in mix:
        place = min(range(len(free)), key=lambda at: prefer(free[at], site.paces[at], job))
        free[place] += site.paces[place] * job
    return max(free)


def refusing(site: Site, mix: Sequence[float], guesses: Sequence[float], *, longest: bool) -> float:
    """What an order could do that knew the lengths as well as `guesses` say. Seconds until all are done.

    A free place on hardware takes the longest job. One in software takes a job only where that ends before hardware
    would be through with all the others: of these the `longest`, or only the shortest of all that wait.
    """
    waiting, now, paces = list(range(len(mix))), 0.0, site.paces
    ends, thought = [0.0] * len(paces), [0.0] * len(paces)
    while waiting:
        for place, pace in enumerate(paces):
            if ends[place] > now or not waiting:
                continue
            job = max(waiting, key=lambda one: guesses[one])
            if pace > 1:
                others = sum(max(0.0, end - now) for end in thought[: site.hardware]) + sum(
                    guesses[one] for one in waiting
                )
                fit = [one for one in waiting if guesses[one] * pace <= (others - guesses[one]) / site.hardware]
                shortest = min(waiting, key=lambda one: guesses[one])
                if not fit or (not longest and shortest not in fit):
                    continue
                job = max(fit, key=lambda one: guesses[one]) if longest else shortest
            waiting.remove(job)
            ends[place], thought[place] = now + mix[job] * pace, now + guesses[job] * pace
        now = min(end for end in ends if end > now)
    return max(ends)


def sizes(mix: Sequence[float]) -> list[int]:
    """Pixels of each job as far as they tell its length, the same for the same mix."""
    generator = Random(repr(mix))
    return [max(1, round(1e6 * seconds * generator.lognormvariate(0, ERROR))) for seconds in mix]


def guessed(mix: Sequence[float], error: float) -> list[float]:
    """The lengths as somebody knows them who is wrong by up to that share, the same for the same mix."""
    generator = Random(repr(mix))
    return [seconds * generator.uniform(1 - error, 1 + error) for seconds in mix]


@dataclass(slots=True)
class Running:
    """A job in a place: when its encoding began and ends, None while it waits for a slot."""

    job_id: str
    fence: int
    lease: str
    began: float | None = None
    ends: float = math.inf


@dataclass(slots=True)
class Post:
    """A simulated worker: what it is to the ledger, its machine, and what it has in hand."""

    owner: str
    told: Told
    machine: Machine
    capacity: Capacity
    pace: float
    held: list[Running] = field(default_factory=list)

    def reports(self, now: float, sized: Mapping[str, int]) -> list[Report]:
        return [Report(one.job_id, one.fence, (), _progress(one, now), sized.get(one.job_id)) for one in self.held]


def _progress(one: Running, now: float) -> Mapping[str, object] | None:
    return None if one.began is None else {"fraction": (now - one.began) / (one.ends - one.began)}


class Simulation:
    """The product's queue over one Redis, whose clock is ours. What was in that Redis is lost.

    Without `slower` its order is that of arrival, otherwise that of effort.
    """

    def __init__(self, url: str, site: Site, slower: float | None = SLOWER) -> None:
        self._site = site
        self._slower = slower
        self.waits: list[float] = []
        """Seconds that each job of the last mix waited before it began."""
        self._ledger = Ledger(url)
        self._redis = self._ledger._redis
        self._slots = Slots(self._redis)
        for scripts in (self._ledger, self._slots):
            scripts._script = self._redis.register_script(_at_our_time(_text(scripts)))

    def run(self, mix: Sequence[float]) -> float:
        """Submit the whole mix at once, and let the workers have it. Seconds until the last job is done."""
        self._redis.flushall()
        self._posts = _posts(self._site)
        self._now, self._tended, self._settled = 0.0, 0.0, False
        self._sizes: dict[str, int] = {}
        self._set_clock()
        self._beat()
        self._seconds = dict(self._submitted(mix))
        self._set_clock()
        self._began: dict[str, float] = {}
        if self._slower is not None:
            self._sizes = dict(zip(self._seconds, sizes(mix), strict=True))
        left = len(mix)
        while True:
            ended = sum(self._finished(post) for post in self._posts)
            left -= ended
            if not left:
                self.waits = [self._began[job_id] for job_id in self._seconds]
                return self._now
            self._settled = self._settled and not ended
            self._fill()
            self._advance()

    def close(self) -> None:
        self._ledger.close()

    def _submitted(self, mix: Sequence[float]) -> Iterator[tuple[str, float]]:
        for number, seconds in enumerate(mix):
            job_id, asked = f"job{number}", _spec(number)
            self._set_clock(number * 1e-6)
            self._ledger.submit(job_id, asked, queue.message(job_id, asked.priority))
            yield job_id, seconds

    def _advance(self) -> None:
        """To the next moment at which something can change: a job ends, or one has waited long enough."""
        ends = min(one.ends for post in self._posts for one in post.held)
        due = self._due(ends) if self._waiting() else math.inf
        self._now = min(ends, due)
        self._set_clock()
        self._beat()
        if self._now == due:
            self._tended = due
            hopped, scouted = self._ledger.tend(WAIT, RISE, self._slower), self._scout()
            self._settled = not hopped and not scouted and self._now > scout.AFTER

    def _scout(self) -> bool:
        """What the scouts look into within a second, which is one job each. Gives whether there was any."""
        if self._slower is None:
            return False
        found = list(filter(None, (self._ledger.unweighed(post.told.queues, scout.AFTER) for post in self._posts)))
        for job_id, _ in found:
            self._ledger.weigh(job_id, self._sizes[job_id])
        return bool(found)

    def _due(self, ends: float) -> float:
        """The next look after the queues that changes something; the workers look every TEND seconds.

        That is the one after any change, the last one before a place is free, and one at which a job waited enough.
        """
        soonest = self._now_or_next()
        if not self._settled:
            return soonest
        last = TEND * math.floor(ends / TEND)
        return max(soonest, min(last if last >= soonest else math.inf, TEND * _whole(self._waited_enough() / TEND)))

    def _now_or_next(self) -> float:
        """The next look."""
        return TEND * (math.floor(self._now / TEND) + 1)

    def _waited_enough(self) -> float:
        """When the next job has waited long enough to hop or to rise."""
        first = [(self._first(f"transcoder:prefer:{name}"), WAIT) for name in self._posts[0].told.queues]
        return min(since + patience for since, patience in [*first, (self._first("transcoder:rising"), RISE)])

    def _first(self, index: str) -> float:
        """Since when the first of an index waits."""
        found = self._redis.zrange(index, 0, 0, withscores=True)
        return float(found[0][1]) - _START if found else math.inf

    def _waiting(self) -> bool:
        return self._redis.zcard("transcoder:state:queued") > 0

    def _set_clock(self, later: float = 0.0) -> None:
        self._redis.set(_CLOCK, f"{_START + self._now + later:.6f}")

    def _beat(self) -> None:
        for post in self._posts:
            self._ledger.beat(post.owner, post.reports(self._now, self._sizes), post.told)
            leases = [(post.capacity.key, one.lease, _cost()) for one in post.held if one.began is not None]
            self._slots._change("renew", leases=leases)

    def _finished(self, post: Post) -> int:
        """End what is done by now. Gives how many."""
        done = [one for one in post.held if one.ends <= self._now]
        for one in done:
            self._slots._change("release", place=post.capacity.key, lease=one.lease)
            self._ledger.finish(Report(one.job_id, one.fence), "published", result={})
            post.held.remove(one)
        return len(done)

    def _fill(self) -> None:
        """Every free place takes what comes, and every job in hand asks for its slot."""
        for post in self._posts:
            while len(post.held) < post.told.places and (taken := self._take(post)):
                post.held.append(taken)
            for one in post.held:
                if one.began is None and self._slot(post, one):
                    one.began, one.ends = self._now, self._now + post.pace * self._seconds[one.job_id]
                    self._began[one.job_id] = self._now

    def _take(self, post: Post) -> Running | None:
        """What a free place gets: kombu's BRPOP over the lists of the served queues, the most urgent first."""
        served = queue.Served(lambda: post.told.queues).consume(0)
        keys = [name + step for step in STEPS for name in served]
        while popped := self._redis.lmpop(len(keys), *keys, direction="RIGHT"):
            [job_id], *_ = json.loads(_body(str(popped[1][0])))
            match self._ledger.claim(job_id, post.owner, SCHEMA):
                case Claimed() as claimed:
                    return Running(job_id, claimed.fence, f"{job_id}.{claimed.fence}.1")
        return None

    def _slot(self, post: Post, one: Running) -> bool:
        words = {"place": post.capacity.key, "lease": one.lease, "cost": _cost(), "budget": post.capacity.budget}
        return self._slots._change("ask", **words) == ["yours"]


def _whole(looks: float) -> float:
    """Up to the next whole number of looks, for ever too."""
    return math.ceil(looks) if math.isfinite(looks) else looks


def _body(message: str) -> bytes:
    return b64decode(json.loads(message)["body"])


def _text(scripts: Ledger | Slots) -> str:
    text = scripts._script.script
    return text if isinstance(text, str) else bytes(text).decode()


def _at_our_time(script: str) -> str:
    """The same script, whose clock is a key."""
    real = "redis.call('TIME')"
    assert script.count(real) == 1, "the scripts ask for the time in another way than this knows"
    return script.replace(real, f"{{redis.call('GET', '{_CLOCK}'), 0}}")


def _posts(site: Site) -> list[Post]:
    """A worker with a device, as it is by default, and one without."""
    machines = {"device": values.with_gpu("vaapi"), "cpus": values.MACHINE}
    return [
        _post("device", machines["device"], site.hardware, 1.0),
        _post("cpus", machines["cpus"], site.software, site.slower),
    ]


def _post(owner: str, machine: Machine, places: int, pace: float) -> Post:
    serves: placement.Serves = "both" if machine.devices else "software"
    queues = tuple(map(placement.queue_name, placement.served(machine, serves)))
    told = Told(name=owner, serves=serves, queues=queues, places=places)
    assert (pace == 1.0) == (_route(machine) != SOFTWARE)
    return Post(owner, told, machine, Capacity(owner, owner, places * _cost()), pace)


def _spec(number: int) -> JobSpec:
    return read({"source": f"/in/{number}.mov", "target": f"/out/{number}.mp4"})


def _route(machine: Machine) -> str:
    return plan(_spec(0), values.SOURCE, machine).commands[0].route.api


@cache
def _cost() -> float:
    return plan(_spec(0), values.SOURCE, values.MACHINE).commands[0].cost


def efficiencies(site: Site, seeds: Sequence[int], spent: Callable[[list[float]], float]) -> list[float]:
    """The efficiency of an order in the mix of each seed."""
    return [bound(site, mix) / spent(mix) for mix in map(site.mix, seeds)]


@dataclass(frozen=True, slots=True)
class Found:
    """What an order reached over the mixes: its least, 5 % and median efficiency.

    `mean` and `p95` are seconds that the shorter half of a mix waited, where that was looked at.
    """

    order: str
    worst: float
    low: float
    median: float
    mean: float | None = None
    p95: float | None = None

    @property
    def verdict(self) -> str:
        return "met" if self.median >= GOAL_MEDIAN and self.worst >= GOAL_WORST else "not met"

    def cells(self) -> tuple[str, ...]:
        waits = tuple("" if seconds is None else f"{seconds:.0f}" for seconds in (self.mean, self.p95))
        return (self.order, f"{self.worst:.2f}", f"{self.low:.2f}", f"{self.median:.2f}", self.verdict, *waits)


HEAD = (
    *("order", "worst", "5 %", "median", f"median >= {GOAL_MEDIAN}, worst >= {GOAL_WORST:.2f}"),
    *("short jobs wait, s", "p95"),
)


def compare(url: str, site: Site, seeds: Sequence[int], told: float = SLOWER) -> list[Found]:
    """The product's queue beside plain FIFO, longest-first, and orders that know the lengths.

    `told` is how many times slower software is in the eyes of the queue.
    """
    effort, arrival = Simulation(url, site, told), Simulation(url, site, None)
    waits: list[float] = []

    def simulated(simulation: Simulation) -> Callable[[list[float]], float]:
        def spent(mix: list[float]) -> float:
            seconds = simulation.run(mix)
            waits.extend(wait for job, wait in zip(mix, simulation.waits, strict=True) if job <= median(mix))
            return seconds

        return spent

    def knowing(error: float, longest: bool) -> Callable[[list[float]], float]:
        return lambda mix: refusing(site, mix, guessed(mix, error), longest=longest)

    orders: dict[str, Callable[[list[float]], float]] = {
        "this queue": simulated(effort),
        "this queue, TRANSCODER_ORDER=arrival": simulated(arrival),
        "plain FIFO, first free place": partial(first_free, site),
        "longest first, to the earliest finish": partial(longest_first, site),
        "longest first, software refuses; lengths known": knowing(0.0, True),
        "the same, lengths known to 30 %": knowing(0.3, True),
        "software takes only the shortest; known to 30 %": knowing(0.3, False),
    }
    found = []
    for name, spent in orders.items():
        waits.clear()
        reached = efficiencies(site, seeds, spent)
        short = (fmean(waits), quantile(waits, 0.95)) if waits else ()
        found.append(Found(name, min(reached), quantile(reached, 0.05), median(reached), *short))
    effort.close()
    arrival.close()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print and, if asked, keep. The exit code says that it ran, not that the goal is met."""
    parser = argparse.ArgumentParser("benchmarks.ordering", description="How busy the queue keeps what there is.")
    parser.add_argument("--mixes", type=int, default=300, help="how many, with the seeds 0, 1, 2 …")
    parser.add_argument("--jobs", type=int, default=Site.jobs, help="in a mix")
    parser.add_argument("--middle", type=float, default=Site.middle, help="seconds of the median job on hardware")
    parser.add_argument("--slower", type=float, default=Site.slower, help="times that software is slower")
    parser.add_argument("--told", type=float, default=SLOWER, help="TRANSCODER_SOFTWARE_SLOWER")
    parser.add_argument("--out", type=Path, help="a folder for ordering.md and ordering.json")
    asked = parser.parse_args(argv)
    site, began = Site(jobs=asked.jobs, middle=asked.middle, slower=asked.slower), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="transcoder-bench-") as folder:
        about = machine_room.environment(Path(folder))
        with services.private_redis(Path(folder)) as redis:
            found = compare(redis.url, site, range(asked.mixes), asked.told)
    print("\n".join("  ".join(cells) for cells in (HEAD, *(one.cells() for one in found))))
    print(f"{asked.mixes} mixes, {time.monotonic() - began:.0f} s")
    if asked.out:
        _keep(asked.out, site, asked.mixes, found, about)
    return 0


def _keep(folder: Path, site: Site, mixes: int, found: Sequence[Found], about: Mapping[str, object]) -> None:
    table = "\n".join(
        f"| {' | '.join(cells)} |" for cells in (HEAD, ("---",) * len(HEAD), *(one.cells() for one in found))
    )
    about_mixes = (
        f"{mixes} mixes of {site.jobs} jobs, submitted at once; {site.hardware} places on hardware, {site.software} in "
        f"software that take {site.slower:g} times as long; lengths on hardware lognormal with a median of "
        f"{site.middle:g} s and sigma {site.sigma:g}. What a scout finds out of a job is off its time by a lognormal "
        f"factor with sigma {ERROR:g}; in order of arrival a job waits {WAIT:g} s for hardware. Efficiency: the lower "
        "bound over the time taken. Short jobs are the shorter half of a mix."
    )
    (folder / "ordering.md").write_text(f"# A run of `python -m benchmarks.ordering`\n\n{about_mixes}\n\n{table}\n")
    kept = {"site": asdict(site), "mixes": mixes, "environment": about, "found": [asdict(one) for one in found]}
    (folder / "ordering.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
