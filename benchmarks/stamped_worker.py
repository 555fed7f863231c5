"""The real worker, with a function in the place of job.transcode that notes when it is called and makes nothing."""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.stamps import stamp
from transcoder import worker
from transcoder.command import Route
from transcoder.events import Published, Timings
from transcoder.manifest import Attempt


def note(_spec: object, attempt: Attempt, *_: Any) -> Published:
    stamp(attempt.job_id, time.monotonic_ns())
    return Published(Route("software", "software"), (), "", Timings())


if __name__ == "__main__":
    vars(worker)["transcode"] = note
    sys.exit(worker.main(sys.argv[1:]))
