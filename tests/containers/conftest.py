"""Images, drivers and machines that the tests on the container engine ask for."""

from pathlib import Path

import pytest

from tests.containers import stack
from tests.gpu import DeviceMachine, build_in


@pytest.fixture(scope="session")
def software_image() -> str:
    return stack.image("software")


@pytest.fixture(scope="session")
def vaapi_image() -> str:
    return stack.image("vaapi")


@pytest.fixture(scope="session")
def qsv_image() -> str:
    return stack.image("qsv")


@pytest.fixture(scope="session")
def simgpu_driver() -> Path:
    """The software GPU's driver with its oneVPL runtime, for the libraries of our images."""
    with stack.alone("simgpu"):  # make builds what is new, for one process of the tests at a time
        return build_in(stack.simgpu_image(), stack.CACHE / "simgpu-trixie")


@pytest.fixture
def device_machine(simgpu_driver: Path, tmp_path: Path) -> DeviceMachine:
    """A machine whose GPUs are devices of the kernel; it has none until the test adds some."""
    return DeviceMachine(tmp_path / "machine", simgpu_driver)


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder for a stack that the tests of a module share."""
    return tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
