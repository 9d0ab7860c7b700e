"""The routes of V2's extensions over fakes: what is asked of the data plane, and what a client gets."""

import base64
import json
from collections.abc import Iterator

import pytest
import wire
from serving import FunctionPlane, Running, serving

from oip.errors import InvalidArgument
from oip.regions import RegionRange
from oip.server.extensions import (
    BatchStatistics,
    Duration,
    Extensions,
    IndexEntry,
    InferenceStatistics,
    ModelStatistics,
    SharedMemoryRegion,
)
from oip.server.process_settings import NoTracing


class Recorded:
    """Every extension at once; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.memory = bytearray(16)
        self.settings = {"log_info": True, "log_verbose_level": 0, "log_file": ""}

    def statistics(self, name="", version=""):
        self.asked.append(("statistics", name, version))
        inference = InferenceStatistics(success=Duration(2, 30), queue=Duration(2, 5))
        return [ModelStatistics("m", "1", 7, 3, 2, inference, (BatchStatistics(3, compute_infer=Duration(1, 9)),))]

    def index(self, *, ready_only=False):
        self.asked.append(("index", ready_only))
        return [IndexEntry("m", "1", "READY"), IndexEntry("n", "", "UNAVAILABLE", "why"), IndexEntry("o")]

    async def load(self, name, *, config=None, files=None):
        self.asked.append(("load", name, config, files))

    async def unload(self, name, *, unload_dependents=False):
        self.asked.append(("unload", name, unload_dependents))

    def status(self, name=""):
        return [SharedMemoryRegion("r", 4, 8)]

    def register(self, name, key, byte_size, offset=0):
        self.asked.append(("register", name, key, byte_size, offset))

    def unregister(self, name=""):
        self.asked.append(("unregister", name))

    def read(self, place):
        return memoryview(self.memory)[place.offset : place.offset + place.byte_size]

    def check(self, place):
        if place.region != "r":
            raise InvalidArgument(f"no region {place.region}")

    def write(self, place, content):
        self.asked.append(("write", place, bytes(content)))

    def log_settings(self):
        return self.settings

    def update_log_settings(self, changes):
        self.settings |= changes


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    recorded = Recorded()
    plane = FunctionPlane(lambda inputs: {"y": inputs["x"] * 2})
    plane.recorded = recorded
    plane.extensions = Extensions(recorded, recorded, recorded, NoTracing(lambda: ["m"]), recorded)
    with serving(plane) as running:
        yield running


@pytest.fixture
def asked(running) -> list[tuple]:
    found = running.service.plane.recorded.asked
    found.clear()
    return found


def post(running: Running, path: str, body: object = None) -> wire.Reply:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return wire.call(running.url, "POST", path, content)


@pytest.mark.parametrize(
    ("path", "name", "version"),
    [
        ("/v2/models/stats", "", ""),
        ("/v2/models/m/stats", "m", ""),
        ("/v2/models/m/versions/4/stats", "m", "4"),
    ],
)
def test_statistics(running, asked, path, name, version):
    [found] = wire.call(running.url, "GET", path).json["model_stats"]
    assert asked == [("statistics", name, version)]
    zero = {"count": 0, "ns": 0}
    assert found.pop("inference_stats") == {
        "success": {"count": 2, "ns": 30},
        "queue": {"count": 2, "ns": 5},
        **dict.fromkeys(("fail", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"), zero),
    }
    batch = {"batch_size": 3, "compute_input": zero, "compute_infer": {"count": 1, "ns": 9}, "compute_output": zero}
    assert found == {
        "name": "m",
        "version": "1",
        "last_inference": 7,
        "inference_count": 3,
        "execution_count": 2,
        "response_stats": {},
        "batch_stats": [batch],
        "memory_usage": [],
    }


@pytest.mark.parametrize(("body", "ready"), [(None, False), ({}, False), ({"ready": True}, True)])
def test_the_index(running, asked, body, ready):
    assert post(running, "/v2/repository/index", body).json == [
        {"name": "m", "version": "1", "state": "READY", "reason": ""},
        {"name": "n", "version": "", "state": "UNAVAILABLE", "reason": "why"},
        {"name": "o"},
    ]
    assert asked == [("index", ready)]


FILE = base64.b64encode(b"\x00file").decode()


@pytest.mark.parametrize(
    ("path", "body", "call"),
    [
        ("models/m/load", None, ("load", "m", None, {})),
        ("models/m/load", {"parameters": None}, ("load", "m", None, {})),
        ("models/m%20x/load", {"parameters": {"config": "{}"}}, ("load", "m x", "{}", {})),
        (
            "models/m/load",
            {"parameters": {"config": "{}", "file:1/model.pt": FILE}},
            ("load", "m", "{}", {"1/model.pt": b"\x00file"}),
        ),
        ("models/m/unload", None, ("unload", "m", False)),
        ("models/m/unload", {"parameters": {"unload_dependents": True}}, ("unload", "m", True)),
    ],
)
def test_load_and_unload(running, asked, path, body, call):
    reply = post(running, f"/v2/repository/{path}", body)
    assert (reply.status, reply.body) == (200, b"")
    assert asked == [call]


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("region/r/register", ("register", "r", "/k", 8, 4)),
        ("region/r/unregister", ("unregister", "r")),
        ("unregister", ("unregister", "")),
    ],
)
def test_shared_memory(running, asked, path, call):
    body = {"key": "/k", "byte_size": 8, "offset": 4}
    assert post(running, f"/v2/systemsharedmemory/{path}", body).status == 200
    assert asked == [call]
    for place in ("status", "region/r/status"):
        reply = wire.call(running.url, "GET", f"/v2/systemsharedmemory/{place}")
        assert reply.json == [{"name": "r", "key": "", "offset": 4, "byte_size": 8}]


def request(parameters: dict, output: dict) -> dict:
    return {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": parameters}],
        "outputs": [{"name": "y", "parameters": output}],
    }


PLACE = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


def test_tensors_in_regions(running, asked):
    reply = post(running, "/v2/models/model/infer", request(PLACE, {**PLACE, "shared_memory_offset": 8}))
    [output] = reply.json["outputs"]
    assert output == {
        "name": "y",
        "datatype": "FP32",
        "shape": [1, 2],
        "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 8},
    }
    assert asked == [("write", RegionRange("r", 8, 8), bytes(8))]


@pytest.mark.parametrize(
    ("parameters", "output", "message"),
    [
        ({**PLACE, "shared_memory_byte_size": 4}, {}, "takes 8 bytes, got 4"),
        ({**PLACE, "binary_data_size": 8}, {}, "has data in the body too"),
        (PLACE, {**PLACE, "shared_memory_region": "other"}, "no region other"),
        (PLACE, {**PLACE, "shared_memory_byte_size": 7}, "should be at least 8 bytes to hold the results"),
        (PLACE, {**PLACE, "classification": 1}, "cannot go into shared memory"),
        (PLACE, {"shared_memory_offset": 1}, "but no 'shared_memory_region'"),
    ],
)
def test_regions_that_do_not_fit(running, asked, parameters, output, message):
    reply = post(running, "/v2/models/model/infer", request(parameters, output))
    assert reply.status == 400
    assert message in reply.json["error"]
    assert asked == []


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("repository/index", b"nonsense", 400, "JSON"),
        ("repository/index", [], 400, "must be a JSON object"),
        ("repository/index", {"ready": 1}, 400, "'ready' must be true or false"),
        ("repository/models/m/load", {"parameters": []}, 400, "'parameters' must be an object"),
        ("repository/models/m/load", {"parameters": {"colour": "x"}}, 400, "unknown load parameter 'colour'"),
        ("repository/models/m/load", {"parameters": {"config": {}}}, 400, "'config' must be a string"),
        ("repository/models/m/load", {"parameters": {"file:1/m": "%"}}, 400, "'file:1/m' must hold the file's content"),
        ("repository/models/m/load", {"parameters": {"file:1/m": "é"}}, 400, "in base64"),
        ("repository/models/m/unload", {"parameters": {"unload_dependents": 1}}, 400, "'unload_dependents' must be"),
        ("systemsharedmemory/region/r/register", {}, 400, "'key' must be"),
        ("systemsharedmemory/region/r/register", {"key": 3}, 400, "'key' must be"),
        ("systemsharedmemory/region/r/register", {"key": "k"}, 400, "'byte_size' must be"),
        ("systemsharedmemory/region/r/register", {"key": "k", "byte_size": -1}, 400, "'byte_size' must be"),
        ("systemsharedmemory/region/r/register", {"key": "k", "byte_size": 1.5}, 400, "'byte_size' must be"),
        ("systemsharedmemory/region/r/register", {"key": "k", "byte_size": 1, "offset": "0"}, 400, "'offset' must be"),
        ("cudasharedmemory/region/r/register", {}, 501, "CUDA shared memory is not served"),
        ("logging", {"log_info": None}, 400, "'log_info' must be"),
        ("trace/setting", {"trace_level": ["TIMESTAMPS"]}, 501, "no traces are written"),
        ("trace/setting", {"trace_level": [None]}, 400, "'trace_level' must be"),
        ("models/nope/trace/setting", {}, 404, "'nope' is not found"),
    ],
)
def test_what_is_refused(running, asked, path, body, status, message):
    reply = post(running, f"/v2/{path}", body)
    assert (reply.status, message in reply.json["error"]) == (status, True), reply
    assert asked == []


def test_settings(running):
    assert wire.call(running.url, "GET", "/v2/trace/setting").json["trace_level"] == ["OFF"]
    assert (
        post(running, "/v2/models/m/trace/setting", {"trace_rate": 1000, "trace_file": None}).json["trace_rate"]
        == "1000"
    )
    assert post(running, "/v2/logging", {"log_verbose_level": 2}).json["log_verbose_level"] == 2
    assert wire.call(running.url, "GET", "/v2/logging").json["log_verbose_level"] == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "models/stats"),
        ("GET", "models/model/stats"),
        ("POST", "repository/index"),
        ("POST", "repository/models/m/load"),
        ("POST", "repository/models/m/unload"),
        ("GET", "systemsharedmemory/status"),
        ("POST", "systemsharedmemory/region/r/register"),
        ("POST", "systemsharedmemory/unregister"),
        ("GET", "cudasharedmemory/region/r/status"),
        ("POST", "cudasharedmemory/region/r/register"),
        ("POST", "cudasharedmemory/unregister"),
        ("GET", "trace/setting"),
        ("POST", "models/m/trace/setting"),
        ("GET", "logging"),
        ("POST", "logging"),
    ],
)
def test_a_plane_without_extensions_serves_none(plain, method, path):
    reply = wire.call(plain.url, method, f"/v2/{path}", b"{}" if method == "POST" else None)
    assert (reply.status, reply.json["code"]) == (501, "UNSUPPORTED")
    assert "not served here" in reply.json["error"]


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with serving(FunctionPlane(lambda inputs: {"y": inputs["x"]})) as running:
        yield running
