"""Regions by key: what may be registered, read and written, and what is told."""

import os
from pathlib import Path

import pytest

from oip.errors import InvalidArgument, NotFound
from oip.regions import RegionRange, region_range
from oip.server import shared_memory
from oip.server.extensions import SharedMemoryRegion
from oip.server.shared_memory import SystemSharedMemory

CONTENT = bytes(range(64))


def open_descriptors():
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "shm"
    place.mkdir()
    (place / "key").write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(CONTENT)
    return place


@pytest.fixture(params=["own", "foreign"])
def memory(folder, monkeypatch, request):
    """Over regions of this user, which are mapped, and of another one, which are not."""
    if request.param == "foreign":
        monkeypatch.setattr(shared_memory.os, "geteuid", lambda: os.getuid() + 1)
    return SystemSharedMemory(folder)


def test_read_and_write(memory, folder):
    memory.register("r", "/key", 32, 8)
    assert memory.status() == memory.status("r") == [SharedMemoryRegion("r", 8, 32)]
    assert bytes(memory.read(RegionRange("r", 4, 3))) == CONTENT[12:15]
    memory.check(RegionRange("r", 0, 32))
    memory.write(RegionRange("r", 30, 2), b"xy")
    assert (folder / "key").read_bytes()[38:41] == b"xy" + CONTENT[40:41]
    memory.register("same", "key", 64)
    assert [region.name for region in memory.status()] == ["r", "same"]
    memory.unregister("r")
    memory.unregister("r")
    with pytest.raises(NotFound, match="'r'"):
        memory.status("r")
    memory.unregister()
    assert memory.status() == []


def test_what_was_read_outlives_the_region(memory):
    memory.register("r", "key", 64)
    view = memory.read(RegionRange("r", 0, 64))
    memory.unregister()
    assert bytes(view) == CONTENT


@pytest.mark.parametrize(
    ("key", "byte_size", "offset", "message"),
    [
        ("missing", 4, 0, "its key must name"),
        ("../secret", 4, 0, "its key must name"),
        ("/../secret", 4, 0, "its key must name"),
        ("..", 4, 0, "its key must name"),
        ("/", 4, 0, "its key must name"),
        ("//key", 4, 0, "its key must name"),
        ("a/key", 4, 0, "its key must name"),
        ("key\x00x", 4, 0, "its key must name"),
        ("k" * 256, 4, 0, "its key must name"),
        ("link", 4, 0, "its key must name"),
        ("folder", 4, 0, "its key must name"),
        ("pipe", 4, 0, "its key must name"),
        ("key", 65, 0, "has 64"),
        ("key", 1, 64, "has 64"),
        ("key", 0, 0, "'byte_size' must be from 1"),
        ("key", -1, 0, "'byte_size' must be from 1"),
        ("key", 1, -1, "'offset' must be from 0"),
        ("key", 2**64, 0, "'byte_size' must be"),
        ("key", 2**61, 2**61, "has 64"),
    ],
)
def test_what_cannot_be_registered(memory, folder, key, byte_size, offset, message):
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    before = open_descriptors()
    with pytest.raises(InvalidArgument, match=message) as caught:
        memory.register("r", key, byte_size, offset)
    assert "secret" not in caught.value.message
    assert str(folder) not in caught.value.message
    assert memory.status() == []
    assert open_descriptors() <= before


@pytest.mark.parametrize("name", ["", "n" * 257, "a\nb", "triton_python_backend_shm_region_1"])
def test_names_that_are_refused(memory, name):
    with pytest.raises(InvalidArgument, match="region"):
        memory.register(name, "key", 4)


def test_a_name_is_taken_once_and_there_is_a_limit(memory, monkeypatch):
    memory.register("r", "key", 4)
    with pytest.raises(InvalidArgument, match="already in manager"):
        memory.register("r", "key", 8)
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 1)
    with pytest.raises(InvalidArgument, match="the limit"):
        memory.register("s", "key", 8)


@pytest.mark.parametrize(
    "place", [RegionRange("r", 0, 33), RegionRange("r", 32, 1), RegionRange("r", 2**63 - 1, 2**63 - 1)]
)
def test_nothing_outside_a_region_is_touched(memory, place):
    memory.register("r", "key", 32)
    for use in (memory.read, memory.check):
        with pytest.raises(InvalidArgument, match="Invalid offset"):
            use(place)
    with pytest.raises(InvalidArgument, match="Invalid offset"):
        memory.write(RegionRange("r", 31, 1), b"xy")
    with pytest.raises(InvalidArgument, match="Unable to find"):
        memory.read(RegionRange("other", 0, 1))


def test_a_foreign_region_that_shrinks_is_an_error_and_no_crash(folder, monkeypatch):
    monkeypatch.setattr(shared_memory.os, "geteuid", lambda: os.getuid() + 1)
    memory = SystemSharedMemory(folder)
    memory.register("r", "key", 64)
    os.truncate(folder / "key", 8)
    with pytest.raises(InvalidArgument, match="'r' has become shorter"):
        memory.read(RegionRange("r", 0, 64))


def test_no_descriptor_stays_open(folder):
    before = open_descriptors()
    memory = SystemSharedMemory(folder)
    for number in range(10):
        memory.register(f"r{number}", "key", 8)
    memory.unregister()
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({}, None),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 4}, RegionRange("r", 0, 4)),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": 2},
            RegionRange("r", 2, 4),
        ),
    ],
)
def test_where_a_tensor_lies(parameters, place):
    assert region_range(parameters, "input 'x'") == place
    assert place is None or place.parameters() == parameters


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shared_memory_byte_size": 4}, "but no 'shared_memory_region'"),
        ({"shared_memory_offset": 4}, "but no 'shared_memory_region'"),
        ({"shared_memory_region": ""}, "a non-empty string"),
        ({"shared_memory_region": 3}, "a non-empty string"),
        ({"shared_memory_region": "r"}, "needs the parameter 'shared_memory_byte_size'"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": True}, "a number of bytes"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": -1}, "a number of bytes"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 1, "shared_memory_offset": 2**63}, "bytes"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 1.5}, "a number of bytes"),
    ],
)
def test_parameters_that_say_no_place(parameters, message):
    with pytest.raises(InvalidArgument, match=message) as caught:
        region_range(parameters, "input 'x'")
    assert "input 'x'" in caught.value.message
