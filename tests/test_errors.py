"""The tree of errors: every one has a code of its own, survives a record, and is documented."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from transcoder import errors
from transcoder.errors import InputMissing, TranscoderError, error_named, exit_codes

EVERY = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, TranscoderError)]
DOCUMENT = Path(__file__).parent.parent / "docs" / "exit-codes.md"


def test_no_two_errors_share_an_exit_code() -> None:
    codes = [one.exit_code for one in EVERY]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("error", [one for one in EVERY if one is not TranscoderError], ids=lambda one: one.__name__)
def test_an_error_has_its_own_code_from_3_and_its_own_summary(error: type[TranscoderError]) -> None:
    assert 3 <= error.exit_code < 126
    assert error.summary != TranscoderError.summary


@pytest.mark.parametrize("error", EVERY, ids=lambda one: one.__name__)
def test_an_error_comes_back_from_its_record(error: type[TranscoderError]) -> None:
    raised = error("the thing is wrong", "Mend it.", {"line": 3})
    record = json.loads(json.dumps(raised.as_record()))
    again = error_named(record["kind"])(record["what"], record["next_step"], record["evidence"])
    assert type(again) is error
    assert again.as_record() == raised.as_record()


def test_an_error_of_an_unknown_kind_is_still_an_error_of_ours() -> None:
    assert error_named("FromTheFuture") is TranscoderError


def test_an_error_says_what_is_wrong_and_then_what_to_do() -> None:
    assert str(InputMissing("no file", "Copy it.")) == "no file\n  Copy it."
    assert str(InputMissing("no file")) == "no file"


def test_every_exit_code_is_documented_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert tuple((int(code), meaning) for code, meaning in rows) == exit_codes()
