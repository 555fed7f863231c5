"""Results read from files that may come from a stranger, and reports written beside them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from typing import Final, NoReturn

from pydantic import ValidationError

from transcoder.bench.analysis import Analysis, analyse
from transcoder.bench.plots import MARK
from transcoder.bench.result import SCHEMA, Result, contradiction
from transcoder.errors import ResultUnusable, TargetExists, TargetUnwritable

LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a result: a week of measurements has less."""
_BEYOND: Final = 1e15
"""No second, frame or byte of a benchmark is as many; sums and squares of less stay finite."""
_ANOTHER: Final = "Give the JSON file that `transcoder bench topology` or `transcoder bench density` wrote."


def read(path: str) -> Result:
    """The result in that file.

    Raises ResultUnusable for what is no result: missing, no regular file, too large, no JSON, of another schema
    version, with fields or numbers that make no sense.
    """
    try:
        data = json.loads(_text(path), parse_int=_whole, parse_float=_real, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ResultUnusable(f"{path} is no JSON that can be read: {str(error)[:200]}", _ANOTHER) from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(data, dict) or version is None:
        raise ResultUnusable(f"{path} is no result of a benchmark", _ANOTHER)
    if version != SCHEMA:
        raise ResultUnusable(
            f"{path} has schema version {str(version)[:20]}, and this transcoder reads version {SCHEMA}",
            "Read it with the version of transcoder that wrote it, or measure again.",
        )
    try:
        result = Result.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _impossible(path, f"{where[:200]}: {first['msg']}") from None
    if wrong := contradiction(result):
        raise _impossible(path, wrong)
    return result


def _impossible(path: str, why: str) -> ResultUnusable:
    return ResultUnusable(f"{path} is no whole result: {why}", _ANOTHER)


def analysed(name: str, result: Result) -> tuple[Result, Analysis]:
    """The result and what follows from it. Raises ResultUnusable for numbers from which nothing can follow."""
    try:
        return result, analyse(result)
    except (ArithmeticError, ValueError) as error:
        raise ResultUnusable(f"the numbers of {name} make no sense together: {error}", _ANOTHER) from None


def write(path: str, text: str, *, overwrite: bool = False) -> None:
    """Write a report, whole or not at all, over nothing but an earlier report unless `overwrite`.

    Raises TargetExists, TargetUnwritable.
    """
    draft = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:100]}.{secrets.token_hex(4)}")
    try:
        replace = _may_replace(path, overwrite=overwrite)
        try:
            _draft(draft, text)
            if replace:
                os.replace(draft, path)
            else:
                os.link(draft, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
    except FileExistsError:
        raise _taken(path) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        next_step = "Give a file in a folder that can be written."
        raise TargetUnwritable(f"{path} cannot be written: {reason}", next_step) from None


def _text(path: str) -> str:
    try:
        # a pipe is opened without waiting for who writes to it, and refused
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ResultUnusable(f"{path} is not a regular file", _ANOTHER)
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ResultUnusable(f"{path} cannot be read: {reason}", _ANOTHER) from None
    if len(content) > LARGEST:
        raise ResultUnusable(f"{path} is larger than {LARGEST // 1024**2} MiB, which no result is", _ANOTHER)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ResultUnusable(f"{path} is not text in UTF-8", _ANOTHER) from None


def _whole(digits: str) -> int:
    if len(digits) > 16 or abs(int(digits)) > _BEYOND:
        raise ValueError(f"no benchmark sees {digits[:20]}")
    return int(digits)


def _real(digits: str) -> float:
    if not abs(float(digits)) <= _BEYOND:
        raise ValueError(f"no benchmark sees {digits[:20]}")
    return float(digits)


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _may_replace(path: str, *, overwrite: bool) -> bool:
    """Whether there is a file that may be replaced. Raises TargetExists where there is one that may not."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or not (overwrite or _ours(path)):
        raise _taken(path)
    return True


def _ours(path: str) -> bool:
    """Whether it is a report of ours: each says so near its beginning or on its last line."""
    with open(path, "rb") as file:
        start = file.read(2000)
        file.seek(max(0, os.fstat(file.fileno()).st_size - 100))
        return MARK.encode() in (start if start.startswith(b"<") else file.read())


def _draft(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _taken(path: str) -> TargetExists:
    return TargetExists(
        f"{path} is there and is no report of ours", "Give another name, or --overwrite to replace a regular file."
    )
