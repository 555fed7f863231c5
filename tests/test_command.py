"""Commands as values: one decode, what is common done once, and no name that turns into an option."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.values import MACHINE, SOURCE, SRT, SURROUND, after, planned, source, spec, words
from transcoder.command import FORMATS, Command
from transcoder.plan import plan


def only(command: Sequence[Command]) -> Command:
    assert len(command) == 1
    return command[0]


def test_a_ladder_decodes_once_and_splits_after_what_its_rungs_share() -> None:
    heights = (720, 480, 240)
    rungs = [{"name": f"{height}", "video": {"height": height, "max_fps": 10}} for height in heights]
    argv = words(SOURCE, *rungs)
    assert argv.count("-i") == 1
    graph = after("-filter_complex", argv)
    assert graph.count("fps=fps=") == 1
    assert graph.index("fps=") < graph.index("split=3") < graph.index("scale=")
    assert [f"h={height}" in graph for height in heights] == [True] * 3


def test_a_source_is_kept_to_itself() -> None:
    argv = words(SOURCE)
    before_input = argv[: argv.index("-i")]
    assert after("-protocol_whitelist", before_input) == "file"
    assert after("-format_whitelist", before_input) == FORMATS
    assert not {"hls", "concat", "dash", "sdp", "image2", "applehttp"} & set(FORMATS.split(","))


def test_pixels_are_bounded_on_the_way_too() -> None:
    command = plan(spec(), SOURCE, MACHINE, max_pixels=1000).commands[0]
    assert after("-max_pixels", command.argv()) == "1000"


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..")
)


@given(names)
def test_no_name_becomes_an_option_or_a_pattern(name: str) -> None:
    command = only(plan(spec(source=f"/in/{name}", target="/out/made.mp4"), SOURCE, MACHINE).commands)
    argv = command.argv("ffmpeg", [f"/scratch/{name}"])
    assert after("-i", argv) == f"file:/in/{name}"
    assert argv[-1] == f"file:/scratch/{name}"


def test_a_pasted_command_writes_to_the_final_path_and_asks_before_it_overwrites() -> None:
    argv = only(planned(SOURCE).commands).argv()
    assert argv[-1] == "file:/out/made.mp4"
    assert "-y" not in argv


def test_streams_are_mapped_in_the_order_video_audio_subtitles() -> None:
    argv = words(source(audio=(*SOURCE.audio, SURROUND), subtitles=(SRT,)), {"container": "mkv"})
    maps = [argv[place + 1] for place, word in enumerate(argv) if word == "-map"]
    assert maps[0].startswith("[")
    assert maps[1:] == ["0:1", "0:2", "0:3"]


@pytest.mark.parametrize(
    ("output", "option", "value"),
    [
        pytest.param({}, "-movflags", "+faststart", id="mp4 starts fast"),
        pytest.param({"video": {"codec": "hevc"}}, "-tag:v", "hvc1", id="hevc in mp4 is hvc1"),
        pytest.param({"container": "mkv"}, "-f", "matroska", id="mkv is matroska"),
        pytest.param({"video": None}, "-f", "mp4", id="m4a is mp4"),
        pytest.param({"video": {"gop": 1.5}}, "-force_key_frames", "expr:gte(t,n_forced*1.5)", id="GOP in seconds"),
        pytest.param({"audio": {"channels": 1}}, "-b:a:0", "64000", id="64 kbit/s a channel"),
    ],
)
def test_an_output_has_the_option(output: dict[str, object], option: str, value: str) -> None:
    assert after(option, words(SOURCE, output)) == value


def test_only_mp4_gets_options_of_mp4() -> None:
    argv = words(SOURCE, {"container": "mkv", "video": {"codec": "hevc"}})
    assert "-movflags" not in argv
    assert "-tag:v" not in argv
