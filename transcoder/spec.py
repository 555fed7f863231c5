"""What is asked: a job's spec, and the one home of every default.

All models are frozen and refuse unknown fields. Units: sizes in pixels, times in seconds, bitrates in bits per second,
rates in frames per second.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from transcoder.errors import SpecError

SCHEMA = 1
"""The newest schema of a spec that this version understands."""

VideoCodec = Literal["h264", "hevc", "av1", "vp9", "copy"]
AudioCodec = Literal["aac", "opus", "copy"]
Container = Literal["mp4", "mkv", "webm"]
Api = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$", max_length=16)]

PLACEHOLDER = re.compile(r"\{(name|height|profile|ext|stem)\}")
_BRACED = re.compile(r"\{[a-z]+\}")
_INT32 = 2**31 - 1  # ffmpeg's options for rates and buffers
_ENCODED_CODECS_OF_WEBM = {"video": ("av1", "vp9", "copy"), "audio": ("opus", "copy")}


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path has no NUL character")
    if not text.startswith("/"):
        raise ValueError("a path is absolute: it begins with /")
    if ".." in text.split("/"):
        raise ValueError("a path has no '..' in it: write where it leads")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a path is valid UTF-8: rename the file") from None
    return text


M = TypeVar("M", bound=BaseModel)

Path = Annotated[str, Field(min_length=2, max_length=4096), AfterValidator(_path)]


Numbers = Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(min_length=1)]


class Model(BaseModel):
    """The common rules: frozen, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Bitrate(Model):
    """Aim at an average bitrate under a ceiling."""

    mode: Literal["bitrate"] = "bitrate"
    bitrate: int = Field(ge=10_000, le=1_000_000_000, description="Average, in bits per second.")
    maxrate: int | None = Field(
        None, ge=10_000, le=1_000_000_000, description="Ceiling, in bits per second; 1.5 x bitrate when left out."
    )
    bufsize: int | None = Field(
        None, ge=10_000, le=_INT32, description="Buffer of the ceiling, in bits; 2 x maxrate when left out."
    )

    @model_validator(mode="after")
    def _ceiling_is_above(self) -> Self:
        if self.maxrate is not None and self.maxrate < self.bitrate:
            raise ValueError("maxrate is not below bitrate")
        return self

    @property
    def ceiling(self) -> int:
        """The ceiling in bits per second."""
        return self.maxrate or self.bitrate * 3 // 2

    @property
    def buffer(self) -> int:
        """The buffer of the ceiling in bits."""
        return self.bufsize or min(self.ceiling * 2, _INT32)


class ConstantBitrate(Model):
    """Hold one bitrate all the time."""

    mode: Literal["constant"] = "constant"
    bitrate: int = Field(ge=10_000, le=1_000_000_000, description="Bits per second, at every moment.")
    bufsize: int | None = Field(None, ge=10_000, le=_INT32, description="Buffer in bits; 2 x bitrate when left out.")

    @property
    def buffer(self) -> int:
        """The buffer in bits."""
        return self.bufsize or min(self.bitrate * 2, _INT32)


class Quality(Model):
    """Hold one quality and let the bitrate follow."""

    mode: Literal["quality"] = "quality"
    quality: int = Field(
        ge=1,
        le=51,
        description="On libx264's CRF scale: lower is better, 18 is near transparent, 23 is usual; "
        "docs/quality.md maps it to each encoder.",
    )


Rate = Annotated[Bitrate | ConstantBitrate | Quality, Field(discriminator="mode")]


class Edges(Model):
    """What is cut off a picture as it is shown, in pixels, even because chroma has half of them."""

    left: int = Field(0, ge=0, le=16384, multiple_of=2, description="Pixels off the left.")
    right: int = Field(0, ge=0, le=16384, multiple_of=2, description="Pixels off the right.")
    top: int = Field(0, ge=0, le=16384, multiple_of=2, description="Pixels off the top.")
    bottom: int = Field(0, ge=0, le=16384, multiple_of=2, description="Pixels off the bottom.")


class Video(Model):
    """The picture of one output."""

    codec: VideoCodec = Field("h264", description="Codec to encode with; 'copy' passes the source's stream through.")
    width: int | None = Field(
        None, ge=16, le=16384, description="Width in pixels; with height it is a box that the picture is fitted into."
    )
    height: int | None = Field(
        None, ge=16, le=16384, description="Height in pixels; with width it is a box that the picture is fitted into."
    )
    upscale: Literal["never", "allow", "skip"] = Field(
        "never",
        description="Where the asked size is larger than the source: 'never' keeps the source's size, 'allow' "
        "enlarges, 'skip' leaves this output out (the rungs of a ladder).",
    )
    max_fps: float | None = Field(
        None, ge=1, le=1000, description="Cap in frames per second; sources below it keep their own, variable or not."
    )
    rate: Rate = Field(default_factory=lambda: Quality(quality=23), description="Rate control.")
    gop: float = Field(
        2.0, gt=0, le=600, description="Seconds between key frames; the outputs of one job have them at the same times."
    )
    depth: Literal[8, 10] | None = Field(
        None, description="Bits a sample; when left out 8 for h264, and the source's for the others."
    )
    speed: Literal["fast", "balanced", "quality"] = Field(
        "balanced", description="What the encoder favours, speed or quality."
    )
    hdr: Literal["auto", "keep", "sdr"] = Field(
        "auto",
        description="HDR sources: 'auto' keeps HDR where codec and depth carry it and maps it to SDR elsewhere, 'keep' "
        "refuses instead, 'sdr' always maps.",
    )
    crop: Edges | None = Field(None, description="Edges to cut off before anything is scaled, such as black bars.")
    deinterlace: Literal["auto", "never"] = Field(
        "auto", description="'auto' deinterlaces sources that are marked interlaced, one frame for a frame."
    )


class Audio(Model):
    """The sound of one output."""

    codec: AudioCodec = Field("aac", description="Codec to encode with; 'copy' passes the source's streams through.")
    bitrate: int | None = Field(
        None, ge=6_000, le=1_000_000, description="Bits per second a stream; 64,000 a channel when left out."
    )
    channels: int | None = Field(
        None, ge=1, le=8, description="Channels to mix down to; a source with fewer keeps its own."
    )
    streams: (
        Literal["all", "first"] | Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(min_length=1)]
    ) = Field(
        "all", description="Which of the source's audio streams: 'all', 'first', or their numbers among audio from 0."
    )


class Output(Model):
    """One file to make."""

    name: str = Field(
        "main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Its name, for {name} in the target."
    )
    container: Container = Field("mp4", description="mp4 (faststart), mkv or webm.")
    video: Video | None = Field(default_factory=Video, description="The picture; null makes a file without.")
    audio: Audio | None = Field(default_factory=Audio, description="The sound; null makes a file without.")
    subtitles: Literal["copy", "drop"] = Field(
        "copy", description="'copy' keeps what the container can hold, text as its own kind of text; 'drop' drops."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.video is None and self.audio is None:
            raise ValueError("an output has video or audio")
        if self.container == "webm":
            if self.video and self.video.codec not in _ENCODED_CODECS_OF_WEBM["video"]:
                raise ValueError(f"webm cannot hold {self.video.codec}: take vp9 or av1, or another container")
            if self.audio and self.audio.codec not in _ENCODED_CODECS_OF_WEBM["audio"]:
                raise ValueError(f"webm cannot hold {self.audio.codec}: take opus, or another container")
        return self

    @property
    def extension(self) -> str:
        """The ending of its file name, for {ext} in the target: an mp4 without video is an m4a."""
        return "m4a" if self.container == "mp4" and self.video is None else self.container


class Acceleration(Model):
    """Which hardware may, must or must not be used."""

    policy: Literal["prefer", "require", "never"] = Field(
        "prefer", description="'prefer' falls back to software, 'require' fails instead, 'never' is software only."
    )
    apis: tuple[Api, ...] = Field((), description="APIs in the order to try them; empty means every one, best first.")
    device: str | None = Field(
        None, max_length=255, description="One device, by path (/dev/dri/renderD128) or PCI address (0000:00:02.0)."
    )


class JobSpec(Model):
    """A job: one source, one decode, one or several outputs."""

    schema_version: Literal[1] = Field(1, alias="schema", description="Version of this schema.")
    source: Path = Field(description="The file to read, an absolute path on the worker.")
    target: Path = Field(
        description="The file to write, an absolute path on the worker; for several outputs a template with {name}, "
        "{height}, {profile}, {ext} or {stem} (the source's name without its ending)."
    )
    outputs: tuple[Output, ...] = Field(
        default_factory=lambda: (Output(),), min_length=1, max_length=32, description="The files to make."
    )
    profile: str = Field(
        "custom", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name of the profile the outputs came from."
    )
    acceleration: Acceleration = Field(default_factory=Acceleration, description="Which hardware may be used.")
    priority: int = Field(5, ge=0, le=9, description="0 is the lowest, 9 the highest.")
    token: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Client token: submitting the same token and spec again answers with the first job.",
    )
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=dict, max_length=64, description="Words of the user, kept with the job and its manifest."
    )
    overwrite: bool = Field(False, description="Replace targets that exist; otherwise they are refused.")
    salvage: bool = Field(False, description="Publish what can be read of a source that is cut short, and say so.")
    verify: Literal["sampled", "full"] = Field(
        "sampled", description="Decode the first, the last and three other groups of pictures, or everything."
    )

    if not TYPE_CHECKING:  # the checker keeps the fields' own signature

        def __init__(self, **fields):
            """From fields by name.

            Raises:
                SpecError: naming each field that is wrong.
            """
            try:
                super().__init__(**fields)
            except ValidationError as refused:
                raise _refused(refused) from None

    @model_validator(mode="after")
    def _outputs_are_distinct(self) -> Self:
        names = [output.name for output in self.outputs]
        if len(set(names)) < len(names):
            raise ValueError("every output has a name of its own")
        if len(names) > 1 and not re.search(r"\{(name|height|ext)\}", self.target):
            raise ValueError("several outputs need a target template with {name}, {height} or {ext} in it")
        template = len(names) > 1 or PLACEHOLDER.search(self.target)  # otherwise braces are letters of a name
        strange = [word for word in _BRACED.findall(self.target) if not PLACEHOLDER.fullmatch(word)]
        if template and strange:
            raise ValueError(
                f"target: there is no placeholder {strange[0]}; there are {{name}}, {{height}}, {{profile}}, "
                "{ext} and {stem}"
            )
        return self

    def target_of(self, output: Output, height: int | None) -> str:
        """The path of one output: the template filled in. `height` in pixels, None without video."""
        stem = self.source.rsplit("/", 1)[-1]
        stem = stem.rsplit(".", 1)[0] or stem
        words = {
            "name": output.name,
            "height": "audio" if height is None else str(height),
            "profile": self.profile,
            "ext": output.extension,
            "stem": stem,
        }
        return PLACEHOLDER.sub(lambda found: words[found[1]], self.target)


def read(data: object) -> JobSpec:
    """A spec from values as JSON gives them.

    Raises:
        SpecError: naming each field that is wrong, or a schema newer than this version.
    """
    schema = data.get("schema", SCHEMA) if isinstance(data, dict) else SCHEMA
    if isinstance(schema, int) and schema > SCHEMA:
        raise SpecError(
            f"the spec has schema {schema}; this version of transcoder reads up to {SCHEMA}",
            "Upgrade transcoder here, or write the spec in the older schema.",
        )
    return validated(JobSpec, data)


def validated(model: type[M], data: object) -> M:
    """One of the models from plain values.

    Raises:
        SpecError: naming each field that is wrong.
    """
    try:
        return model.model_validate(data)
    except ValidationError as refused:
        raise _refused(refused) from None


def _refused(error: ValidationError) -> SpecError:
    found = error.errors()
    # a tuple with a wrong member is also said to be too short
    kept = [one for one in found if one["type"] != "too_short"] or found
    lines = "\n".join(_line(one["loc"], one["msg"], one["type"]) for one in kept)
    return SpecError(lines, "`transcoder schema` prints every field with its meaning.")


def _line(where: tuple[int | str, ...], why: str, kind: str) -> str:
    field = ".".join(str(step) for step in where) or "spec"
    reason = "there is no such field" if kind == "extra_forbidden" else why.removeprefix("Value error, ")
    return f"{field}: {reason}"
