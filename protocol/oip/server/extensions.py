"""The seam for what V2 offers beyond inference: statistics, model control, shared memory, settings.

Knows no transport and no model.  HTTP and gRPC translate between their wire and these values; a data
plane that has an attribute `extensions` serves what is in it, any other one refuses all of it.
Every method runs on the event loop and is quick, except where it is `async`.  What may be raised is named in
`oip.errors`; each transport translates that as it does for inference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol, TypeVar

from oip.errors import Unsupported
from oip.regions import RegionRange

# --- statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and the nanoseconds it took altogether."""

    count: int = 0
    nanoseconds: int = 0


@dataclass(frozen=True, slots=True)
class InferenceStatistics:
    """Triton's `InferStatistics`, in its order; there is no cache here, so its two stay zero."""

    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


DURATIONS = tuple(field.name for field in fields(InferenceStatistics))
"""The names of the durations, in the order in which every transport writes them."""


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """The executions of one batch size."""

    batch_size: int
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What the statistics extension tells of one model version.

    `inference_count` counts rows, `execution_count` executions, whatever their batch size.
    """

    name: str
    version: str
    last_inference_milliseconds: int = 0
    """Since the epoch; 0 for never."""
    inference_count: int = 0
    execution_count: int = 0
    inference: InferenceStatistics = InferenceStatistics()
    batches: tuple[BatchStatistics, ...] = ()
    """By ascending batch size."""


class StatisticsSource(Protocol):
    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """Of the ready versions; "" stands for every one.  Sorted by name, then version.

        Raises:
            NotFound: no such model or version.
            Unavailable: it is not ready.
        """


# --- model control ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index.  A model that has no version has version "" and, if unloaded, state ""."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class ModelControl(Protocol):
    def index(self, *, ready_only: bool = False) -> list[IndexEntry]:
        """What the repository holds and what is served, sorted by name, then version."""

    async def load(self, name: str, *, config: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model; returns when it is ready.

        Args:
            config: a model configuration as JSON, instead of the repository's.
            files: contents by `<version>/<name>` (without the wire's prefix `file:`), instead of the repository's
                folder; needs `config`.

        Raises:
            InvalidArgument: it cannot be loaded, the message says why; what served before still serves.
            NotFound: the repository has no such model.
            Unavailable: this server does not let clients load.
        """

    async def unload(self, name: str, *, unload_dependents: bool = False) -> None:
        """Stop serving a model; returns when its requests are finished and its memory is given back.

        A model that is not loaded is no error.

        Raises:
            Unavailable: this server does not let clients unload.
        """


FILE_PREFIX = "file:"
"""Of the load parameters that carry files, in both transports."""

# --- shared memory ----------------------------------------------------------------------------------------------------

SHARED_MEMORY_IS_OFF = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
NO_CUDA_SHARED_MEMORY = (
    "CUDA shared memory is not served here; register a system shared memory region, or send tensors in the body"
)


@dataclass(frozen=True, slots=True)
class SharedMemoryRegion:
    """One line of the shared memory status.  Its key is kept to the server: `key` is always ""."""

    name: str
    offset: int
    byte_size: int
    key: str = ""


class SharedMemory(Protocol):
    """System shared memory.  Messages never hold a key."""

    def status(self, name: str = "") -> list[SharedMemoryRegion]:
        """The registered regions, sorted by name; "" stands for all.

        Raises:
            NotFound: no such region.
            Unsupported: shared memory is switched off.
        """

    def register(self, name: str, key: str, byte_size: int, offset: int = 0) -> None:
        """
        Raises:
            InvalidArgument: the name is taken, or the key or range is not allowed or not there.
            Unsupported: shared memory is switched off.
        """

    def unregister(self, name: str = "") -> None:
        """Forget a region, "" for all; one that is not registered is no error.  Requests that use it still finish.

        Raises:
            Unsupported: shared memory is switched off.
        """

    def read(self, place: RegionRange) -> memoryview:
        """The bytes of a tensor, as a view that stays valid after the region was unregistered.

        Raises:
            InvalidArgument: no such region, or the range leads out of it.
            Unsupported: shared memory is switched off.
        """

    def check(self, place: RegionRange) -> None:
        """Raise what `write` would for a range, before the work is done."""

    def write(self, place: RegionRange, content: bytes | bytearray | memoryview) -> None:
        """Put bytes into a region; raises as `read` does."""


class NoSharedMemory:
    """Shared memory switched off, or not served at all: every call is refused."""

    def __init__(self, why: str = "shared memory is not served here; send tensors in the body") -> None:
        self._why = why

    def status(self, name: str = "") -> list[SharedMemoryRegion]:
        raise Unsupported(self._why)

    def register(self, name: str, key: str, byte_size: int, offset: int = 0) -> None:
        raise Unsupported(self._why)

    def unregister(self, name: str = "") -> None:
        raise Unsupported(self._why)

    def read(self, place: RegionRange) -> memoryview:
        raise Unsupported(self._why)

    def check(self, place: RegionRange) -> None:
        raise Unsupported(self._why)

    def write(self, place: RegionRange, content: bytes | bytearray | memoryview) -> None:
        raise Unsupported(self._why)


def cuda_status(memory: SharedMemory) -> list[SharedMemoryRegion]:
    """The registered CUDA regions: none.  Raises Unsupported where shared memory is switched off."""
    memory.status()
    return []


def cuda_register() -> None:
    """Always raises Unsupported."""
    raise Unsupported(NO_CUDA_SHARED_MEMORY)


def cuda_unregister(memory: SharedMemory) -> None:
    """Clients do this before they begin; there is nothing to forget.  Raises as `cuda_status` does."""
    memory.status()


# --- settings ---------------------------------------------------------------------------------------------------------

TraceValue = tuple[str, ...]
LogValue = bool | int | str


class TraceSettings(Protocol):
    def trace_settings(self, model_name: str = "") -> Mapping[str, TraceValue]:
        """By Triton's names; `trace_level` has a list's values, every other setting has one.

        Raises:
            NotFound: no such model.
        """

    def update_trace_settings(self, changes: Mapping[str, TraceValue | None], model_name: str = "") -> None:
        """Change some; None (or no value) puts one back to what it is at start.

        Raises:
            NotFound: no such model.
            InvalidArgument: no such setting, or a value that it cannot have.
            Unsupported: a value that this server cannot honour.
        """


class LogSettings(Protocol):
    def log_settings(self) -> Mapping[str, LogValue]:
        """By Triton's names."""

    def update_log_settings(self, changes: Mapping[str, LogValue]) -> None:
        """Change some, all of them or, where one is refused, none.

        Raises:
            InvalidArgument: no such setting, or a value that it cannot have.
            Unsupported: a setting that cannot be changed, or not to that value.
        """


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extensions:
    """What a data plane serves beyond inference; None is not served at all."""

    statistics: StatisticsSource | None = None
    models: ModelControl | None = None
    shared_memory: SharedMemory = field(default_factory=NoSharedMemory)
    trace: TraceSettings | None = None
    logging: LogSettings | None = None


def extensions_of(plane: object) -> Extensions:
    """What is in a data plane's attribute `extensions`; nothing where it has none."""
    found = getattr(plane, "extensions", None)
    return found if isinstance(found, Extensions) else Extensions()


Extension = TypeVar("Extension")


def served(extension: Extension | None, what: str) -> Extension:
    """The extension itself.

    Raises:
        Unsupported: it is not served here.
    """
    if extension is None:
        raise Unsupported(f"{what} is not served here; see the extensions in GET /v2")
    return extension
