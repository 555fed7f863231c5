"""The whole story of a job, top to bottom. For *what* happens, read this; for *how*, the modules it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transcoder.events import Emit, Published
from transcoder.machine import Machine
from transcoder.policy import Policy
from transcoder.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which job this is, and the how-manieth try at it (the fencing number; 1 without a queue)."""

    job_id: str
    number: int = 1


class Permit(Protocol):
    """The one seam to the queue: without a broker the answer is always yes."""

    def cancelled(self) -> bool:
        """Whether the job was cancelled or taken away. Asked several times a second."""
        ...

    def may_write(self, targets: Sequence[str]) -> None:
        """Claim the final paths for this job, once they are known.

        Raises:
            TargetExists: another unfinished job has one of them.
        """
        ...

    def still_ours(self) -> None:
        """Asked at the last moment before publishing.

        Raises:
            TransitionRefused: the job belongs to another worker by now.
            JobCancelled: it was cancelled.
        """
        ...


def transcode(
    spec: JobSpec, attempt: Attempt, machine: Machine, policy: Policy, emit: Emit, permit: Permit
) -> Published:
    """Make the outputs of `spec`, verified, or raise the TranscoderError that says why not. Leaves nothing half done."""
    raise NotImplementedError
