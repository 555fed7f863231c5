"""Named answers to "what shall I ask": one YAML file a profile, validated by the models of a spec.

The file NAME.yaml holds `description` and `outputs`. A folder of one's own adds profiles, and replaces shipped ones
of the same name.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field

from transcoder.errors import SettingsError, SpecError
from transcoder.spec import JobSpec, Model, Output, validated

_SHIPPED = Path(__file__).parent


class Profile(Model):
    """What to make of any source, under a name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="The name of its file.")
    description: str = Field(min_length=1, max_length=500, description="What it is for, in a sentence.")
    outputs: tuple[Output, ...] = Field(min_length=1, max_length=32, description="The files to make.")

    def spec(self, source: str, target: str, **fields: Any) -> JobSpec:
        """A job of this profile; `fields` are further fields of the spec, such as `overwrite`.

        Raises:
            SpecError: naming each field that is wrong.
        """
        values = {"outputs": self.outputs, **fields}
        return validated(JobSpec, {"source": source, "target": target, "profile": self.name, **values})


def profile(name: str, folder: str | None = None) -> Profile:
    """The profile of that name, from `folder` before the shipped ones.

    Raises:
        SpecError: there is none of that name, or its file is wrong.
        SettingsError: the folder cannot be read.
    """
    files = _files(folder)
    if name not in files:
        raise _unknown(name, sorted(files))
    return _read(files[name])


def every(folder: str | None = None) -> tuple[Profile, ...]:
    """All profiles, by name.

    Raises:
        SpecError: a file is wrong.
        SettingsError: the folder cannot be read.
    """
    return tuple(_read(file) for _, file in sorted(_files(folder).items()))


def text(name: str, folder: str | None = None) -> str:
    """The file of a profile as it was written, to begin one's own from.

    Raises:
        SpecError: there is none of that name, or its file is wrong.
        SettingsError: the folder cannot be read.
    """
    profile(name, folder)
    return _files(folder)[name].read_text()


def _files(folder: str | None) -> dict[str, Path]:
    own = Path(folder) if folder else None
    try:
        found = [*_SHIPPED.iterdir(), *(own.iterdir() if own else ())]
    except OSError as refused:
        raise SettingsError(
            f"the folder of profiles {folder} cannot be read: {refused.strerror}",
            "Set TRANSCODER_PROFILES_FOLDER to a folder that is there.",
        ) from None
    return {file.stem: file for file in found if file.suffix in (".yaml", ".yml")}


def _read(file: Path) -> Profile:
    import yaml

    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as refused:
        raise SpecError(f"{file}: {refused}", "A profile is a YAML file with `description` and `outputs`.") from None
    if not isinstance(values, dict) or "name" in values:
        raise SpecError(
            f"{file}: a profile has `description` and `outputs`, and its file's name for a name",
            "`transcoder profiles h264-1080p` prints one to begin from.",
        )
    try:
        found = validated(Profile, {"name": file.stem, **values})
        # what only a whole spec can tell, such as two outputs of one name
        found.spec(source="/source", target="/{name}.{ext}")
    except SpecError as refused:
        raise SpecError(f"{file}: {refused.what}", refused.next_step) from None
    return found


def _unknown(name: str, known: list[str]) -> SpecError:
    close = [other for other in known if name and name in other] or get_close_matches(name, known, n=3)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return SpecError(f"there is no profile '{name}'", f"{meant}There are {', '.join(known)}.")
