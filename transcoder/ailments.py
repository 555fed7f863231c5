"""The kinds of findings that the doctor has: what each means, how grave it is, why it matters, what mends it.

docs/doctor.md is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass

WARNED, FAILED = 30, 31
"""Exit codes of `transcoder doctor`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding, for people: what it means, how grave it is, why it matters, what mends it."""

    meaning: str
    level: str
    why: str
    mend: str


_AS_NEEDED = "warning; failure where hardware is asked for; note where it is not, or where another GPU works"
_MAP = '`devices: ["/dev/dri/renderD128:/dev/dri/renderD128"]`'
_SOFTWARE = "Where no other GPU works, jobs run in software, and those that require hardware are refused."

CATALOGUE: dict[str, Kind] = {
    "setting-unknown": Kind(
        "A variable begins with `TRANSCODER_` and is no setting.",
        "warning",
        "It does nothing, and what it was meant for keeps its default.",
        "The name that was probably meant is in the finding; see [settings](settings.md).",
    ),
    "capacity-unusable": Kind(
        "The file that `TRANSCODER_CAPACITY_FILE` names cannot be read, or is no capacity file.",
        "failure",
        "A worker refuses to start: it would take more or fewer jobs than was measured, and nobody would know.",
        "`transcoder bench density --capacity FILE`, or unset it; see [capacity](capacity.md).",
    ),
    "capacity-elsewhere": Kind(
        "The capacity file names neither the CPUs nor a device that is here.",
        "note",
        "It changes nothing here: the budgets are the defaults, or the variables that are set.",
        "`transcoder bench density --capacity FILE` on this machine.",
    ),
    "ffmpeg-missing": Kind(
        "ffmpeg or ffprobe is missing, does not start, or is older than 5.1.",
        "failure",
        "Nothing can be transcoded, and a worker refuses to start.",
        "`apt install ffmpeg`, or `TRANSCODER_FFMPEG` and `TRANSCODER_FFPROBE`.",
    ),
    "ffmpeg-old": Kind(
        "ffmpeg is older than 7.0.",
        "note",
        "Ladders take longer, and their routes on a GPU have fixed pools of surfaces.",
        "The images of this project have 7.1.",
    ),
    "ffmpeg-encoders": Kind(
        "Software cannot encode H.264.",
        "warning",
        "Nothing stands in for a GPU that fails, and the worker takes no software jobs for it.",
        "An ffmpeg with libx264.",
    ),
    "ffmpeg-vaapi": Kind(
        "ffmpeg is built without VAAPI, and there is a GPU.",
        _AS_NEEDED,
        _SOFTWARE,
        "An ffmpeg with `--enable-vaapi`; `ffmpeg -buildconf` tells.",
    ),
    "gpu-none": Kind(
        "There is no render node, and the kernel describes no GPU.",
        "note; failure where hardware is asked for",
        _SOFTWARE,
        f"On a host: the kernel's driver. In a container: {_MAP}.",
    ),
    "gpu-card-only": Kind(
        "A display node (card0) is mapped, and no render node.",
        _AS_NEEDED,
        "Only a render node can be used without being the display's master. " + _SOFTWARE,
        f"{_MAP} instead of card0.",
    ),
    "gpu-unmapped": Kind(
        "The host has a GPU that is not mapped into the container.",
        _AS_NEEDED,
        _SOFTWARE,
        f"{_MAP}, with the node's own number. `transcoder compose` on the host writes the whole overlay.",
    ),
    "gpu-chosen": Kind(
        "`TRANSCODER_DEVICE` names a device that is not here.",
        "failure",
        "The worker serves no hardware, or refuses to start where it shall serve hardware only.",
        "Map that node, or name one that is here, best by its PCI address.",
    ),
    "gpu-group": Kind(
        "The process is not in the node's group (EACCES).",
        _AS_NEEDED,
        "The node does not open. " + _SOFTWARE,
        '`group_add: ["NUMBER"]` with the number in the finding (`stat -c %g /dev/dri/renderD128` on the host); on a '
        "host, `usermod -aG render USER`.",
    ),
    "gpu-group-wrong": Kind(
        "The container was given a group, and another one owns the node: the default of an image or of a file.",
        _AS_NEEDED,
        "The number of `render` differs from host to host, and only numbers count in a container. " + _SOFTWARE,
        '`group_add: ["NUMBER"]` with the number in the finding, instead of a name or a default; `RENDER_GID` in .env, '
        "whose default 65534 opens nothing.",
    ),
    "gpu-userns": Kind(
        "The node belongs to `nogroup`: the user namespace of a rootless engine does not know its group.",
        _AS_NEEDED,
        "No `group_add` can help, since the group has no number in there. " + _SOFTWARE,
        "A rule of udev on the host with `MODE=0666`, or Podman with crun and `--group-add keep-groups`.",
    ),
    "gpu-mode": Kind(
        "The node's mode, or its folder's, lets nobody but its owner in.",
        _AS_NEEDED,
        "Joining the group does not help. " + _SOFTWARE,
        "`chmod g+rw` of the node, lasting by a rule of udev; `chmod o+x` of the folder.",
    ),
    "gpu-cgroup": Kind(
        "The node is there, and the container's device cgroup forbids it (EPERM): a bind mount, or the image's own.",
        _AS_NEEDED,
        "`volumes:` brings the node and not the leave to open it. " + _SOFTWARE,
        f"{_MAP} instead of `volumes:`.",
    ),
    "gpu-unbound": Kind(
        "No driver of the kernel serves the node (ENODEV, ENXIO).",
        _AS_NEEDED,
        _SOFTWARE,
        "`modprobe i915`, `xe` or `amdgpu` on the host, its firmware, and `dmesg`.",
    ),
    "gpu-gone": Kind(
        "The node leads nowhere, or is a folder that Docker made for a volume whose source was missing.",
        _AS_NEEDED,
        _SOFTWARE,
        f"{_MAP}; take the volume out.",
    ),
    "gpu-unopened": Kind(
        "The node does not open for another reason, which the finding names.",
        _AS_NEEDED,
        _SOFTWARE,
        "`dmesg` on the host.",
    ),
    "va-driver-missing": Kind(
        "No VA driver is installed for the GPU.",
        _AS_NEEDED,
        "ffmpeg talks to a GPU through it. " + _SOFTWARE,
        "The image `transcoder:<version>-vaapi`; else `apt install intel-media-va-driver` (Intel) or "
        "`mesa-va-drivers` (AMD).",
    ),
    "va-driver-fails": Kind(
        "The VA driver does not start, dies or hangs when it is asked.",
        _AS_NEEDED,
        _SOFTWARE,
        "`dmesg` on the host; another driver by `LIBVA_DRIVER_NAME` (iHD, i965, radeonsi).",
    ),
    "va-libva-missing": Kind(
        "libva is not installed.",
        "note",
        "What the driver lists is not known, so that every encoder costs a trial.",
        "`apt install libva2 libva-drm2`.",
    ),
    "va-entrypoints": Kind(
        "The VA driver lists no encoder (EncSlice, EncSliceLP) at all, or none for H.264 or HEVC.",
        f"note where some are missing; where all are: {_AS_NEEDED}",
        "What is not listed is encoded in software.",
        "Intel: `intel-media-va-driver-non-free` has more on older GPUs. AMD: a Mesa with these codecs.",
    ),
    "va-trials": Kind(
        "The VA driver lists an encoder of which no trial worked.",
        f"note where others work; else: {_AS_NEEDED}",
        "It is never planned. What is listed is a promise; the trial's picture is the proof.",
        "`transcoder devices --fresh` shows each trial; another driver, or `dmesg`.",
    ),
    "huc-missing": Kind(
        "Intel's low-power encoder lists CQP alone: the HuC's firmware is not loaded.",
        "warning; note where the other encoder (EncSlice) has bitrates",
        "Profiles with a bitrate cannot use it, and are encoded in software on GPUs that have no other encoder.",
        "The firmware's package and `options i915 enable_guc=2` on the host, then a reboot.",
    ),
    "vpl-ffmpeg": Kind(
        "An Intel GPU, and an ffmpeg that has no QSV by oneVPL, or is older than 6.0.",
        "note",
        "QSV is not to be had; VAAPI comes first anyway.",
        "The image `transcoder:<version>-qsv`, or an ffmpeg with `--enable-libvpl` (6.0 or newer).",
    ),
    "vpl-missing": Kind(
        "An Intel GPU, and no runtime of oneVPL.",
        "note",
        "QSV is not to be had; VAAPI comes first anyway.",
        "`apt install libmfx-gen1.2`, or the image `transcoder:<version>-qsv`.",
    ),
    "vpl-old": Kind(
        "The runtime of oneVPL is there, and no trial of QSV worked: it is too old for this GPU, or for its VA driver.",
        "warning",
        "QSV is not to be had, although its runtime was installed.",
        "A newer `libmfx-gen1.2` and `intel-media-va-driver`, from backports; or VAAPI.",
    ),
    "vpl-gpu-old": Kind(
        "The Intel GPU is older than Tiger Lake (Gen12), and oneVPL's runtime does not serve it.",
        "note; warning where the runtime is installed",
        "QSV needs the Media SDK there, which Debian 13 no longer has.",
        "VAAPI, which works on these GPUs: `--api vaapi`.",
    ),
    "redis-unreachable": Kind(
        "Redis does not answer.",
        "failure",
        "Jobs can be neither submitted nor taken.",
        "`TRANSCODER_BROKER_URL`; in Compose, the network and the health of the service.",
    ),
    "redis-denied": Kind(
        "Redis wants a password, or another one.",
        "failure",
        "Jobs can be neither submitted nor taken.",
        "The password in `TRANSCODER_BROKER_URL`, or in the file of `TRANSCODER_BROKER_URL_FILE`.",
    ),
    "redis-refuses": Kind(
        "Redis answers and takes no writes: a replica, a full disk or a full memory.",
        "failure",
        "Jobs can be neither submitted nor finished.",
        "The primary's address; room for Redis.",
    ),
    "redis-volatile": Kind(
        "Redis keeps no append-only file.",
        "warning",
        "When it restarts, the jobs since its last snapshot are gone, with their records.",
        "`appendonly yes`.",
    ),
    "redis-evicts": Kind(
        "Redis may throw keys away when its memory is full.",
        "failure; warning while it has no limit",
        "Records of jobs and whole queues vanish without a word. A Redis that says no is seen.",
        "`maxmemory-policy noeviction`.",
    ),
    "clock-off": Kind(
        "The clock differs from that of Redis by more than 2 s.",
        "warning",
        "Jobs are timed by Redis' clock alone and bear it; ages on the screen, logs and manifests are wrong.",
        "NTP on both hosts.",
    ),
    "nofile-low": Kind(
        "Fewer than 1024 files may be open.",
        "warning",
        "Trials and jobs fail when it is reached.",
        "`ulimits: {nofile: {soft: 65536, hard: 65536}}`.",
    ),
    "nofile-huge": Kind(
        "More than 1,048,576 files may be open.",
        "warning",
        "Programs that close every possible file before they start another take seconds to hours over it.",
        "`ulimits: {nofile: {soft: 65536, hard: 65536}}`.",
    ),
    "cpu-quota": Kind(
        "The container has less than one CPU.",
        "warning",
        "Even jobs on a GPU read, mux and verify on the CPU; throttled ones may be taken for stalled.",
        '`cpus: "2"` or more.',
    ),
    "cpu-threads": Kind(
        "`TRANSCODER_THREADS` is more than the CPUs that are allowed.",
        "warning",
        "The encoder's threads use up the quota early in each period, and all of them stand still for its rest.",
        "Unset it: the quota is followed then.",
    ),
    "cache-unwritable": Kind(
        "The cache folder cannot be written.",
        "note",
        "Every start of a worker tries each encoder anew, which takes seconds.",
        "A tmpfs or a volume for `TRANSCODER_CACHE_FOLDER`.",
    ),
    "roots-unset": Kind(
        "`TRANSCODER_MEDIA_ROOTS` is not set.",
        "failure",
        "A worker refuses to start: it touches no file outside the folders that it names.",
        "`TRANSCODER_MEDIA_ROOTS=/media`.",
    ),
    "disk-missing": Kind(
        "A media root is not there, or cannot be entered.",
        "failure",
        "Its sources and targets are refused.",
        "The volume in Compose, or the folder.",
    ),
    "disk-unwritable": Kind(
        "The process cannot write into a media root.",
        "failure; note where another root can be written, as sources may be read-only",
        "No target can be published there.",
        "`chown` to the user in the finding, or `RUN_AS` in .env with the owner's numbers (`stat -c %u:%g`); no `:ro` "
        "on the volume of the targets.",
    ),
    "disk-scratch": Kind(
        "Within a media root a file cannot be renamed from a folder to its neighbour.",
        "failure",
        "Outputs are made in a scratch folder beside the target and renamed once they are verified.",
        "Roots that are one file system each.",
    ),
    "disk-volatile": Kind(
        "A media root lies in the container's own layer.",
        "warning",
        "What is published there goes with the container.",
        "A volume.",
    ),
    "disk-full": Kind(
        "Less than 5 GiB is free.",
        "warning; failure below 256 MiB",
        "A job whose target's file system is full fails; the scratch of all running jobs lies there, too.",
        "Room.",
    ),
    "port-refused": Kind(
        "The port of the metrics cannot be opened: another program has it, or it may not be opened.",
        "failure",
        "The worker refuses to start.",
        "`TRANSCODER_METRICS_PORT`, a port of its own for each worker on one host.",
    ),
    "port-closed": Kind(
        "`TRANSCODER_METRICS_PORT` is 0.",
        "note",
        "Nothing can be scraped, and no health check can ask the worker.",
        "`TRANSCODER_METRICS_PORT=9464`.",
    ),
}
"""Every kind of finding, in the order of looking."""


def documentation() -> str:
    """docs/doctor.md, which a test keeps equal to this."""
    parts = (
        f"### {name}\n\n{kind.meaning}\n\n- Level: {kind.level}.\n- Why: {kind.why}\n- Mend: {kind.mend}\n"
        for name, kind in CATALOGUE.items()
    )
    return "\n".join((_INTRODUCTION, *parts))


_INTRODUCTION = f"""\
# The doctor

    transcoder doctor                                  # this host or container, with the settings of this environment
    docker compose run --rm worker doctor              # as the worker would be started
    docker compose exec worker transcoder doctor       # in one that runs
    transcoder doctor --json | jq '.findings[] | select(.level != "fine")'

It looks at GPUs, drivers, ffmpeg, Redis, limits, disks, the clock and the port of the metrics, and says of each finding
what it is, why it matters and the line that mends it. It asks as the worker does: the same settings, the same user and
groups, the same survey with its trials (remembered ones too). What it makes in a media root and in Redis is gone when
it ends.

It ends with the worst finding: 0 where there is nothing worse than a note, {WARNED} with a warning (the worker works,
and something is not as it should be), {FAILED} with a failure (the worker does not start, or not with what was asked
for). Hardware counts as asked for with `TRANSCODER_SERVES=hardware` or a `TRANSCODER_DEVICE`, and as not asked for with
`TRANSCODER_SERVES=software`.

What it cannot see from inside: a node in `devices:` that the host does not have keeps the container from starting at
all (`error gathering device information`). Take the node's name from `ls -l /dev/dri/by-path` on the host, or let
[`transcoder compose`](deploy.md#an-overlay-for-the-gpus-of-a-host) write the overlay there.

## Findings
"""
