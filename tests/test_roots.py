"""Which paths may be used: by their words at submit, and by their links on the worker."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import MakeClip
from tests.local import Place, Yes
from transcoder.errors import PathRefused
from transcoder.roots import refuse_leading_out, refuse_outside


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.below(tmp_path)


@pytest.fixture
def source(place: Place, make_clip: MakeClip) -> Path:
    return place.bring(make_clip(), "clip.mp4")


@pytest.mark.parametrize(
    "path", ["/media", "/media/", "/media/a", "/media/a/b.mp4", "/other/x", "/media/..a", "/media//a"]
)
def test_what_lies_in_a_root_is_allowed(path: str) -> None:
    refuse_outside(path, ("/media", "/other/"))


@pytest.mark.parametrize(
    "path", ["/", "/mediax", "/media2/a", "/etc/passwd", "/media/../etc/passwd", "/media/a/..", ""]
)
def test_what_lies_elsewhere_is_refused_with_the_roots_named(path: str) -> None:
    with pytest.raises(PathRefused, match=r"\(/media, /other\)") as caught:
        refuse_outside(path, ("/media", "/other"))
    assert repr(path) in caught.value.what
    assert "TRANSCODER_MEDIA_ROOTS" in caught.value.next_step


@pytest.mark.parametrize(("path", "elsewhere"), [("/etc/passwd", True), ("/media/../etc/passwd", False)])
def test_another_host_may_have_other_roots_but_allows_no_climbing_either(path: str, elsewhere: bool) -> None:
    with pytest.raises(PathRefused) as caught:
        refuse_outside(path, ("/media",))
    assert caught.value.of_this_host is elsewhere


def test_the_root_of_all_holds_everything() -> None:
    refuse_outside("/etc/passwd", ("/",))


def test_without_roots_nothing_is_allowed() -> None:
    with pytest.raises(PathRefused, match="none are set"):
        refuse_outside("/media/a", ())


def test_a_link_may_lead_from_root_to_root_but_not_out(tmp_path: Path) -> None:
    one, other, outside = (tmp_path / name for name in ("one", "other", "outside"))
    for folder in (one, other, outside):
        folder.mkdir()
        (folder / "clip.mp4").touch()
    (one / "in.mp4").symlink_to(other / "clip.mp4")
    (one / "out.mp4").symlink_to(outside / "clip.mp4")
    (one / "way").symlink_to(outside)
    (one / "chain.mp4").symlink_to(one / "out.mp4")
    roots = (str(one), str(other))
    refuse_leading_out(str(one / "in.mp4"), roots)
    for name in ("out.mp4", "way/clip.mp4", "way/new.mp4", "chain.mp4"):
        with pytest.raises(PathRefused, match="leads to") as caught:
            refuse_leading_out(str(one / name), roots)
        assert str(outside) in caught.value.what


def test_a_root_that_is_a_link_itself_holds_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "clip.mp4").touch()
    (tmp_path / "media").symlink_to(tmp_path / "disk")
    refuse_leading_out(str(tmp_path / "media" / "clip.mp4"), (str(tmp_path / "media"),))


def test_a_link_that_leads_to_itself_leads_nowhere_bad(place: Place) -> None:
    (place.inside / "loop.mp4").symlink_to("loop.mp4")
    refuse_leading_out(str(place.inside / "loop.mp4"), place.policy.roots)


def test_a_source_outside_the_roots_is_refused(place: Place, source: Path) -> None:
    place.policy = replace(place.policy, roots=(str(place.out),))
    place.refuses(place.spec(source), PathRefused)


def test_a_target_outside_the_roots_is_refused(place: Place, source: Path) -> None:
    place.policy = replace(place.policy, roots=(str(place.inside),))
    place.refuses(place.spec(source), PathRefused, "made.mp4")


@pytest.mark.parametrize("kind", ["file", "folder", "relative"])
def test_a_source_behind_a_link_that_leads_out_is_refused(
    place: Place, source: Path, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    source.rename(outside / "clip.mp4")
    match kind:
        case "file":
            source.symlink_to(outside / "clip.mp4")
        case "relative":
            source.symlink_to("../outside/clip.mp4")
        case _:
            (place.inside / "way").symlink_to(outside)
            source = place.inside / "way" / "clip.mp4"
    error = place.refuses(place.spec(source), PathRefused)
    assert str(outside) in error.what


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "dangling"])
def test_a_target_behind_a_link_that_leads_out_is_refused(
    place: Place, source: Path, tmp_path: Path, kind: str, overwrite: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = place.out / "made.mp4"
    if kind == "folder":
        (place.out / "way").symlink_to(outside)
        target = place.out / "way" / "made.mp4"
    else:
        target.symlink_to(outside / "made.mp4")
        if kind == "file":
            (outside / "made.mp4").write_text("precious")
    place.refuses(place.spec(source, target, overwrite=overwrite), PathRefused, repr(str(target)))
    assert [path.read_text() for path in outside.iterdir()] == (["precious"] if kind == "file" else [])


def test_a_source_by_a_link_within_the_roots_works(place: Place, source: Path) -> None:
    (place.inside / "link.mp4").symlink_to(source)
    place.run(place.spec(place.inside / "link.mp4"))
    assert os.path.isfile(place.out / "made.mp4")


def test_a_link_that_is_turned_outwards_after_the_probe_ends_the_job(
    place: Place, source: Path, tmp_path: Path, make_clip: MakeClip
) -> None:
    (tmp_path / "outside.mp4").write_bytes(make_clip().read_bytes())
    (place.inside / "link.mp4").symlink_to(source)

    def turn() -> None:
        (place.inside / "link.mp4").unlink()
        (place.inside / "link.mp4").symlink_to(tmp_path / "outside.mp4")

    with pytest.raises(PathRefused):
        place.run(place.spec(place.inside / "link.mp4"), permit=Yes(on_claim=turn))
    assert list(place.out.iterdir()) == []
