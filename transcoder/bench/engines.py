"""How the agent of a cell is started: in a container of Docker or Podman, as a process, or bare in the image's root.

Words are made of values; what a program of the engine is asked goes through `children.run`, in time or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from transcoder.bench.result import Engine as Name
from transcoder.children import Ended, run
from transcoder.errors import EngineMissing, ImageMissing
from transcoder.version import __version__

LABEL: Final = "transcoder.bench"
"""Of every container of a benchmark; its value is the benchmark's id."""

INSIDE: Final = "/bench"
"""Where a container has the folder that all cells share."""

AGENT: Final = "transcoder.bench.stack"
IMAGE_PYTHON: Final = "/opt/transcoder/bin/python"

TARGETS: Final = ("software", "vaapi", "qsv")
"""The images that docker/Dockerfile makes."""

_ANSWER_LIMIT = 30.0
_EXPORT_LIMIT = 300.0


@dataclass(frozen=True, slots=True)
class Container:
    """What a container is to be: `shared` is the host's folder for all, `groups` those that own the GPU's nodes.

    `options` are words of the user's for `docker run`.
    """

    name: str
    benchmark: str
    shared: str
    user: tuple[int, int]
    image: str = ""
    nodes: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    options: tuple[str, ...] = ()


class Engine(Protocol):
    """What runs containers."""

    name: Name
    program: str
    """What is asked to remove containers; empty where there are none."""
    inside: str | None
    """Where a container has the shared folder; None where it sees it as we do."""

    def version(self) -> str:
        """Name and version. Raises EngineMissing where it does not answer."""

    def require(self, image: str) -> str:
        """The image's digest. Raises ImageMissing where it is not there."""

    def words(self, container: Container) -> list[str]:
        """What starts the agent, with its questions on stdin; it is gone when that process is."""

    def kill(self, name: str, process: int) -> None:
        """Kill a container as a crash would."""


class Processes:
    """No containers: every cell's agents are processes of this machine, with the ffmpeg that is found here."""

    name: Name = "processes"
    program = ""
    inside = None

    def version(self) -> str:
        return "processes, no containers"

    def require(self, image: str) -> str:
        return ""

    def words(self, container: Container) -> list[str]:
        return [sys.executable, "-m", AGENT, f"{container.shared}/{container.name}"]

    def kill(self, name: str, process: int) -> None:
        os.kill(process, 9)


class Docker:
    """Docker, or Podman, which takes the same words."""

    inside = INSIDE

    def __init__(self, name: Name = "docker") -> None:
        self.name: Name = name
        self.program: str = name

    def version(self) -> str:
        if shutil.which(self.program) is None:
            raise EngineMissing(
                f"{self.program} is not installed", f"Install it, or take --engine {self._other} or processes."
            )
        asked = "{{.Server.Version}}" if self.name == "docker" else "{{.Client.Version}}"
        ended = self._ask("version", "--format", asked)
        if ended.returncode != 0:
            raise EngineMissing(
                f"{self.program} does not answer: {_last(ended)}",
                "Start it and see that you may use it (the group docker), or take --engine processes.",
            )
        return f"{self.name} {ended.stdout.decode().strip()}"

    @property
    def _other(self) -> str:
        return "podman" if self.name == "docker" else "docker"

    def require(self, image: str) -> str:
        ended = self._ask("image", "inspect", "--format", "{{.Id}}", image)
        if ended.returncode != 0:
            raise ImageMissing(f"there is no image {image} here", self.how_to_get(image))
        return ended.stdout.decode().strip()

    def how_to_get(self, image: str) -> str:
        """What to do where it is not here: only of this version's own images is known how they are built."""
        for target in TARGETS:
            if image == own(target):
                return (
                    "Build it, or name one with --image (docs/deploy.md): "
                    f"{self.program} build --file docker/Dockerfile --target {target} --tag {image} ."
                )
        return f"Name with --image one that `{self.program} images` has, or leave that out for this version's own."

    def environment(self, image: str) -> tuple[str, ...]:
        """The variables that the image sets, NAME=VALUE."""
        ended = self._ask("image", "inspect", "--format", "{{json .Config.Env}}", image)
        return tuple(json.loads(ended.stdout or b"null") or ())

    def words(self, container: Container) -> list[str]:
        uid, gid = container.user
        return [
            *(self.program, "run", "--rm", "--interactive", "--pull", "never", "--name", container.name),
            *("--label", f"{LABEL}={container.benchmark}"),
            # what compose/compose.yaml gives a worker, without its network
            *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{uid}:{gid}"),
            *("--network", "none", "--log-driver", "none", "--tmpfs", "/tmp:size=256m,mode=1777"),
            # rootless: our own files are ours inside too
            *(("--userns", "keep-id") if self.name == "podman" and os.geteuid() else ()),
            *("--volume", f"{container.shared}:{INSIDE}"),
            *(word for node in container.nodes for word in ("--device", node)),
            *(word for group in container.groups for word in ("--group-add", str(group))),
            *container.options,
            *("--entrypoint", IMAGE_PYTHON, container.image, "-m", AGENT, f"{INSIDE}/{container.name}"),
        ]

    def kill(self, name: str, process: int) -> None:
        self._ask("kill", name)

    def unpack(self, image: str, benchmark: str, folder: str) -> None:
        """Put the image's root file system into a folder. Raises ImageMissing where that fails."""
        name = f"{folder.rpartition('/')[2]}-export"
        script = f'{self.program} export "$1" | tar --extract --numeric-owner --preserve-permissions --directory "$2"'
        os.makedirs(folder)
        made = self._ask("create", "--name", name, "--label", f"{LABEL}={benchmark}", "--pull", "never", image)
        ended = run(("sh", "-c", script, "sh", name, folder), _EXPORT_LIMIT) if made.returncode == 0 else made
        self._ask("rm", "--force", name)
        if ended.returncode != 0:
            raise ImageMissing(
                f"the image {image} cannot be unpacked into {folder}: {_last(ended)}",
                "See that there is room for it (TMPDIR names another folder).",
            )
        if not os.path.lexists(f"{folder}{IMAGE_PYTHON}"):  # a link leads to where it leads inside
            raise ImageMissing(
                f"the image {image} has no transcoder in it: there is no {IMAGE_PYTHON}",
                "Name an image of transcoder with --image, or leave that out for this version's own.",
            )

    def _ask(self, *words: str) -> Ended:
        return run((self.program, *words), _ANSWER_LIMIT)


def own(target: str) -> str:
    """The name of this version's image of that target, as the documents build it."""
    return f"transcoder:{__version__}-{target}"


def engine(name: Name) -> Docker | Processes:
    """The engine of that name."""
    return Processes() if name == "processes" else Docker(name)


@dataclass(frozen=True, slots=True)
class Granted:
    """What of the user's words for `docker run` a bare cell is given too; `ignored` are those that it has no use for.

    `mounts` and `devices` are (what, where), `tmpfs` is where.
    """

    mounts: tuple[tuple[str, str], ...] = ()
    devices: tuple[tuple[str, str], ...] = ()
    tmpfs: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    ignored: tuple[str, ...] = field(default=())


_KINDS = {
    "-v": "mounts",
    "--volume": "mounts",
    "--device": "devices",
    "--tmpfs": "tmpfs",
    "-e": "environment",
    "--env": "environment",
    "--group-add": "groups",
}


def granted(options: Sequence[str]) -> Granted:
    """Read the user's words for `docker run`."""
    found: dict[str, list[str]] = {kind: [] for kind in (*_KINDS.values(), "ignored")}
    words = [part for word in options for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        word = words.pop(0)
        kind = _KINDS.get(word)
        if kind and words:
            found[kind].append(words.pop(0))
        else:
            found["ignored"].append(word)
    return Granted(
        mounts=tuple(map(_pair, found["mounts"])),
        devices=tuple(map(_pair, found["devices"])),
        tmpfs=tuple(one.partition(":")[0] for one in found["tmpfs"]),
        environment=tuple(found["environment"]),
        groups=tuple(int(one) for one in found["groups"] if one.isdigit()),
        ignored=tuple(found["ignored"]),
    )


def without_values(options: Sequence[str]) -> tuple[str, ...]:
    """The user's words for `docker run` with variables only named: a result is sent to others, a secret is not."""
    return tuple(map(_named, ("", *options), options))


def _named(before: str, word: str) -> str:
    flag, _, rest = word.partition("=")
    if flag in _VARIABLES and rest:
        return f"{flag}={rest.partition('=')[0]}"
    return flag if before in _VARIABLES or word.startswith("-e") else word


_VARIABLES = frozenset(word for word, kind in _KINDS.items() if kind == "environment")


def _pair(text: str) -> tuple[str, str]:
    """What and where of `WHAT:WHERE:MODE`; the same where only one is said."""
    what, _, rest = text.partition(":")
    return what, rest.partition(":")[0] or what


# In a mount namespace of its own, so that nothing is left when its last process ends, however that ends. $0 is the
# root; what follows are triples KIND WHAT WHERE up to a --, and then the command.
_BARE = """
set -eu
mount -t proc proc "$0/proc"
mount --rbind /sys "$0/sys"
mount -t tmpfs -o mode=755 tmpfs "$0/dev"
mount -t tmpfs -o mode=1777,size=256m tmpfs "$0/tmp"
for node in null zero full random urandom; do : > "$0/dev/$node"; mount --bind "/dev/$node" "$0/dev/$node"; done
while [ "$1" != -- ]; do
  case $1 in
    tmpfs) mkdir -p "$0$3"; mount -t tmpfs -o mode=1777 tmpfs "$0$3" ;;
    *) if [ -d "$2" ]; then mkdir -p "$0$3"; else mkdir -p "$(dirname "$0$3")"; [ -e "$0$3" ] || : > "$0$3"; fi
       mount --rbind "$2" "$0$3" ;;
  esac
  shift 3
done
shift
exec chroot "$@"
"""


def bare_words(root: str, container: Container, environment: Sequence[str]) -> list[str]:
    """What starts the agent without a container, in the image's own root file system; needs root.

    It has the image's user, variables, programs and libraries, and of the host what a container of the cell has too.
    """
    uid, gid = container.user
    given = granted(container.options)
    nodes = [(node, node) for node in container.nodes]
    binds = [("bind", *one) for one in ((container.shared, INSIDE), *given.mounts, *given.devices, *nodes)]
    tmpfs = [("tmpfs", "", where) for where in given.tmpfs]
    groups = ",".join(str(group) for group in (gid, *container.groups, *given.groups))
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", _BARE, root),
        *(word for one in (*tmpfs, *binds) for word in one),
        *("--", f"--userspec={uid}:{gid}", f"--groups={groups}", root),
        *("env", "-i", *environment, *given.environment),
        *(IMAGE_PYTHON, "-m", AGENT, f"{INSIDE}/{container.name}"),
    ]


def _last(ended: Ended) -> str:
    return ended.lines[-1] if ended.lines else f"it ended with {ended.returncode}"
