"""Ask the VA driver of a render node what it lists, and print that as JSON.

A program of its own: a bad driver may crash or hang, and that shall be a child which can be killed. It is run by path,
with a Python that knows no packages (`python -I -S`), and imports neither json nor typing, which would take longer than
all the rest. The calls and numbers are those of va.h, which libva.so.2 keeps.
"""

from __future__ import annotations

import os
import sys
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_int, c_uint32, c_void_p

MYPY = False
if MYPY:  # only for it: typing takes as long as asking
    from typing import Any

MODES = {
    0x2: "CBR",
    0x4: "VBR",
    0x8: "VCM",
    0x10: "CQP",
    0x20: "VBR_CONSTRAINED",
    0x40: "ICQ",
    0x400: "QVBR",
    0x800: "AVBR",
    0x1000: "TCBRC",
}
_RATE_CONTROL, _WIDTH, _HEIGHT = 5, 18, 19
_NOT_SUPPORTED = 0x80000000


class _Attribute(Structure):
    _fields_ = (("type", c_int), ("value", c_uint32))


class _Failed(Exception):
    pass


def main(node: str) -> int:
    """Print one JSON object: `vendor` and `entries`, or `missing` (no libva here), or `trouble`."""
    # some drivers print to stdout, which is for the answer alone
    answer = os.dup(1)
    os.dup2(2, 1)
    os.write(answer, _json(_answer(node)).encode("ascii"))
    return 0


def _answer(node: str) -> dict[str, Any]:
    try:
        va, drm = CDLL("libva.so.2"), CDLL("libva-drm.so.2")
    except OSError as missing:
        return {"missing": str(missing)}
    for function in (va.vaErrorStr, va.vaQueryVendorString, va.vaProfileStr, va.vaEntrypointStr):
        function.restype = c_char_p
    drm.vaGetDisplayDRM.restype = c_void_p
    try:
        return _listed(va, drm, os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except (OSError, _Failed) as failed:
        return {"trouble": str(failed)}


def _listed(va: Any, drm: Any, node: int) -> dict[str, Any]:
    display = c_void_p(drm.vaGetDisplayDRM(node))
    if display.value is None:
        raise _Failed("libva knows no driver for it")
    major, minor = c_int(), c_int()
    _asked(va, va.vaInitialize(display, byref(major), byref(minor)))
    vendor = va.vaQueryVendorString(display) or b""
    return {"vendor": vendor.decode("utf-8", "replace"), "entries": [*_entries(va, display)]}


def _asked(va: Any, status: int) -> None:
    if status:
        raise _Failed(f"{status} ({va.vaErrorStr(status).decode()})")


def _entries(va: Any, display: c_void_p) -> list[dict[str, Any]]:
    found = (c_int * max(1, va.vaMaxNumProfiles(display)))()
    number = c_int()
    _asked(va, va.vaQueryConfigProfiles(display, found, byref(number)))
    return [
        {
            "profile": va.vaProfileStr(profile).decode().removeprefix("VAProfile"),
            "entrypoint": va.vaEntrypointStr(entrypoint).decode().removeprefix("VAEntrypoint"),
            **_attributes(va, display, profile, entrypoint),
        }
        for profile in found[: number.value]
        for entrypoint in _entrypoints(va, display, profile)
    ]


def _entrypoints(va: Any, display: c_void_p, profile: int) -> list[int]:
    found = (c_int * max(1, va.vaMaxNumEntrypoints(display)))()
    number = c_int()
    _asked(va, va.vaQueryConfigEntrypoints(display, profile, found, byref(number)))
    return list(found[: number.value])


def _attributes(va: Any, display: c_void_p, profile: int, entrypoint: int) -> dict[str, Any]:
    asked = (_Attribute * 3)(_Attribute(_RATE_CONTROL), _Attribute(_WIDTH), _Attribute(_HEIGHT))
    va.vaGetConfigAttributes.argtypes = (c_void_p, c_int, c_int, POINTER(_Attribute), c_int)
    _asked(va, va.vaGetConfigAttributes(display, profile, entrypoint, asked, len(asked)))
    control, width, height = (0 if one.value == _NOT_SUPPORTED else one.value for one in asked)
    return {"modes": [name for bit, name in MODES.items() if control & bit], "width": width, "height": height}


def _json(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(name)}:{_json(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(one if one.isalnum() and one.isascii() else _escaped(one) for one in value) + '"'
    return str(value)


def _escaped(letter: str) -> str:
    """All but a surrogate pair, which no driver's name has."""
    return f"\\u{min(ord(letter), 0xFFFD):04x}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
