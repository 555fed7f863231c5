"""The Compose overlay for a host's GPUs: parsed back it is what was asked, for any GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from transcoder.machine import Device, Node, Trouble
from transcoder.overlay import NOBODY, Api, Asked, Seen, Topology, chosen, overlay

BY_PATH = "/dev/dri/by-path/pci-0000:00:02.0-render"
INTEL = (Device("0000:00:02.0", "/dev/dri/renderD128", "0x8086", "i915"), Node(992, "render", 0o660, BY_PATH, "0x9a49"))
AMD = (Device("0000:03:00.0", "/dev/dri/renderD129", "0x1002", "amdgpu"), Node(44, None, 0o660, None, "0x73bf"))
NVIDIA = (Device("0000:04:00.0", "/dev/dri/renderD130", "0x10de", "nouveau"), Node(992))


def written(*seen: Seen, topology: Topology = "per-gpu", stacks: int = 1, api: Api = "vaapi") -> str:
    fit, left_out = chosen(seen, api)
    return overlay(fit, left_out, Asked(topology, stacks, api, "1.2.3", "compose.gpus.yaml"))


def services(text: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def test_each_gpu_has_a_container_that_sees_no_other() -> None:
    found = services(written(INTEL, AMD, stacks=4))
    assert {name: (one["devices"], one["group_add"]) for name, one in found.items()} == {
        "worker-gpu0": (["/dev/dri/renderD128:/dev/dri/renderD128"], ["992"]),
        "worker-gpu1": (["/dev/dri/renderD129:/dev/dri/renderD129"], ["44"]),
    }
    first = found["worker-gpu0"]
    assert first["extends"] == {"file": "compose.yaml", "service": "worker"}
    assert first["image"] == "${IMAGE:-transcoder:1.2.3}-vaapi"
    assert first["environment"] == {
        "TRANSCODER_DEVICE": "0000:00:02.0",
        "TRANSCODER_SERVES": "hardware",
        "TRANSCODER_CONCURRENCY": "4",
    }
    assert first["mem_limit"] == "${WORKER_MEMORY:-8g}"
    assert "scale" not in first


def test_each_stack_has_a_container_and_those_of_a_gpu_share_it() -> None:
    found = services(written(INTEL, AMD, topology="per-stack", stacks=3))
    assert [(one["scale"], one["environment"]["TRANSCODER_CONCURRENCY"]) for one in found.values()] == [(3, "1")] * 2
    assert found["worker-gpu0"]["devices"] == ["/dev/dri/renderD128:/dev/dri/renderD128"]


def test_the_worker_that_is_there_gets_one_gpu_and_the_others_are_for_a_human_to_choose() -> None:
    text = written(INTEL, AMD, topology="shared", stacks=2)
    (worker,) = services(text).values()
    assert services(text).keys() == {"worker"}
    assert worker["devices"] == ["/dev/dri/renderD128:/dev/dri/renderD128"]
    assert "TRANSCODER_SERVES" not in worker["environment"]
    other = text.partition("# CHOOSE: a worker serves one GPU")[2]
    for line in ('#   devices: ["/dev/dri/renderD129:', '#   group_add: ["44"]', '#   TRANSCODER_DEVICE: "0000:03'):
        assert line in other


def test_a_comment_tells_which_gpu_a_node_is_and_by_which_name_it_stays() -> None:
    assert f"# 0000:00:02.0, Intel, 0x9a49, i915, {BY_PATH}\n" in written(INTEL)
    assert 'group_add: ["992"] # render on this host' in written(INTEL)


@pytest.mark.parametrize("topology", get_args(Topology))
def test_it_tells_how_it_is_used(topology: Topology) -> None:
    text = written(INTEL, topology=topology)
    assert "#   docker compose -f compose.yaml -f compose.gpus.yaml up --detach\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_qsv_is_for_intels_gpus_alone() -> None:
    text = written(INTEL, AMD, api="qsv")
    assert [one["image"] for one in services(text).values()] == ["${IMAGE:-transcoder:1.2.3}-qsv"]
    assert "# /dev/dri/renderD129 (0000:03:00.0) is left out: QSV is Intel's; --api vaapi takes it" in text


def test_a_gpu_that_no_va_driver_encodes_on_is_left_out_and_named() -> None:
    text = written(INTEL, NVIDIA)
    assert len(services(text)) == 1
    assert "# /dev/dri/renderD130 (0000:04:00.0) is left out: NVIDIA has no VA driver that encodes" in text


@pytest.mark.parametrize("kind", ["group", "mode", "cgroup", "no driver", "driver"])
def test_what_only_keeps_this_process_from_the_gpu_does_not_keep_a_container_from_it(kind: Any) -> None:
    seen = (replace(INTEL[0], trouble=Trouble(kind, "denied", "add it")), INTEL[1])
    assert chosen([seen], "vaapi") == ((seen,), ())


@pytest.mark.parametrize("kind", ["unmapped", "unbound", "gone", "folder"])
def test_a_node_that_is_none_is_left_out_with_what_would_mend_it(kind: Any) -> None:
    seen = (replace(INTEL[0], trouble=Trouble(kind, "it is none", "mend it")), INTEL[1])
    fit, (sentence,) = chosen([seen], "vaapi")
    assert fit == ()
    assert "it is none: mend it" in sentence


def test_a_group_that_is_not_known_is_left_to_a_human() -> None:
    text = written((INTEL[0], Node()))
    assert services(text)["worker-gpu0"]["group_add"] == ["65534"]
    assert "# CHOOSE: the number that `stat -c %g /dev/dri/renderD128` says on the host." in text


def test_a_group_without_a_number_in_this_namespace_is_not_added() -> None:
    text = written((INTEL[0], Node(NOBODY, "nogroup", 0o660)))
    assert "group_add" not in services(text)["worker-gpu0"]
    assert "keep-groups" in text


def test_a_mode_that_shuts_the_group_out_is_said() -> None:
    assert "# CHOOSE: its mode is 0600" in written((INTEL[0], Node(992, "render", 0o600)))


def test_a_device_without_an_address_is_known_by_its_node_alone() -> None:
    (worker,) = services(written((Device("226:128", "/dev/dri/renderD128"), Node(992)))).values()
    assert "TRANSCODER_DEVICE" not in worker["environment"]


numbers = st.none() | st.integers(0, 2**32 - 2)
hosts = st.lists(
    st.tuples(
        st.builds(
            Device,
            id=st.from_regex(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]|\d{3}:\d{3}", fullmatch=True),
            node=st.integers(128, 191).map(lambda number: f"/dev/dri/renderD{number}"),
            vendor=st.sampled_from([None, "0x8086", "0x1002"]),
            driver=st.none() | st.just("i915"),
            va_driver=st.none(), entries=st.none(), trouble=st.none(),
        ),
        st.builds(Node, group=numbers, group_name=st.none(), mode=st.none() | st.integers(0, 0o777)),
    ),
    min_size=1, max_size=4, unique_by=lambda one: one[0].node,
)  # fmt: skip


@given(hosts, st.sampled_from(get_args(Topology)), st.integers(1, 64))
def test_for_any_gpus_the_text_is_yaml_with_as_many_stacks_on_each_as_were_asked(
    seen: list[Seen], topology: Topology, stacks: int
) -> None:
    found = services(written(*seen, topology=topology, stacks=stacks))
    assert len(found) == (1 if topology == "shared" else len(seen))
    for (device, node), one in zip(seen, found.values(), strict=False):
        assert one["devices"] == [f"{device.node}:{device.node}"]
        assert one.get("scale", 1) * int(one["environment"]["TRANSCODER_CONCURRENCY"]) == stacks
        if node.group not in (None, NOBODY):
            assert one["group_add"] == [str(node.group)]
