"""compose/.env.example: complete, true, and of use without a change."""

import re
from pathlib import Path

from transcoder import settings
from transcoder.settings import Settings

COMPOSE = Path(__file__).resolve().parent.parent / "compose"
EXAMPLE = (COMPOSE / ".env.example").read_text()
OFFERED = dict(re.findall(r"^#([A-Z]\w*)=(.*)$", EXAMPLE, re.MULTILINE))


def test_it_ends_with_every_setting_and_its_sentence() -> None:
    regenerate = (
        "sed -i '/^# Redis, for the queue/,$d' compose/.env.example && "
        "python -c \"from transcoder.settings import example as e; print(e(), end='')\" >> compose/.env.example"
    )
    assert EXAMPLE.endswith(settings.example()), regenerate


def test_its_defaults_are_those_of_the_settings() -> None:
    shown = {name: value for name, value in OFFERED.items() if name.startswith(settings.PREFIX)}
    assert set(shown) == {settings.variable(field) for field in Settings.model_fields}
    assert settings.read(shown) == Settings()


def test_every_variable_of_the_compose_files_has_its_line_and_its_default() -> None:
    used = {
        (name, default)
        for file in COMPOSE.glob("compose*.yaml")
        for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", file.read_text())
    }
    # their defaults depend on the overlay, or are Compose's own for a setting; a sentence says so
    several = {"WORKER_MEMORY", "TRANSCODER_GRACE"}
    for name, default in used:
        assert name in OFFERED, name
        assert name in several or OFFERED[name] == default, name
    of_compose = {name for name in OFFERED if not name.startswith((settings.PREFIX, "COMPOSE_"))}
    assert of_compose == {name for name, _ in used if not name.startswith(settings.PREFIX)}


def test_no_variable_of_the_compose_files_is_without_a_default() -> None:
    for file in COMPOSE.glob("compose*.yaml"):
        assert not re.findall(r"\$(?:[A-Za-z_]|\{\w+\})", file.read_text()), file.name


def test_a_line_is_a_sentence_or_a_setting_and_nothing_is_set() -> None:
    for line in EXAMPLE.splitlines():
        assert re.fullmatch(r"|#|# \S.*|#[A-Z]\w*=\S*", line), line
        assert len(line) <= 120
