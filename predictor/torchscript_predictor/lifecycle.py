"""The life of models: which are loading, ready or failed, and why.

Loads in threads of its own, so that the event loop answers meanwhile; the loop only reads what they leave
behind, one attribute at a time.  Knows no protocol and no torch: a `Backend` brings the latter.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

from oip.errors import NotFound, Unavailable
from torchscript_predictor.backends import Backend, LoadedModel, LoadError
from torchscript_predictor.checks import RequestChecker
from torchscript_predictor.instances import ModelInstance
from torchscript_predictor.model_config import ConfigError, InstanceGroup, ModelConfig, parse_model_config
from torchscript_predictor.repository import ModelFolder, ModelRepository, RepositoryError
from torchscript_predictor.scheduler import RETRY_AFTER_SECONDS, Scheduler
from torchscript_predictor.states import ModelState, ModelStatus
from torchscript_predictor.threads import CpuAllowance, intra_op_threads, is_share, read_allowance
from torchscript_predictor.version_policy import choose_versions
from torchscript_predictor.warmup import threads_that_pay, warm_up

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class ModelVersion:
    """One version of a model: its state, and what serves it while it is ready."""

    number: int
    config: ModelConfig
    checker: RequestChecker
    scheduler: Scheduler
    state: ModelState = ModelState.UNKNOWN
    reason: str = ""
    load_seconds: float = 0.0
    intra_op_threads: int = 0
    instances: list[ModelInstance] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Model:
    """A model by name.  While it has no versions, `state` and `reason` are its own; then its versions'."""

    name: str
    state: ModelState = ModelState.UNKNOWN
    reason: str = ""
    versions: dict[str, ModelVersion] = field(default_factory=dict)

    def ready_versions(self) -> list[ModelVersion]:
        """Ascending."""
        return [version for version in self.versions.values() if version.state is ModelState.READY]

    def statuses(self) -> list[ModelStatus]:
        if not self.versions:
            return [ModelStatus(self.name, "-", self.state, self.reason)]
        return [
            ModelStatus(
                self.name,
                number,
                version.state,
                version.reason,
                version.load_seconds,
                len(version.instances),
                version.intra_op_threads,
            )
            for number, version in self.versions.items()
        ]


class ModelLifecycle:
    """All models of a repository that were asked for."""

    def __init__(
        self,
        repository: ModelRepository,
        backend: Callable[[], Backend],
        *,
        load_threads: int = 4,
        max_queue_size: int = 1024,
        allowance: CpuAllowance | None = None,
    ) -> None:
        """
        Args:
            backend: makes the backend, in a loading thread: importing torch takes seconds.
            allowance: CPUs for intra-op threads; None reads the machine's.
        """
        self._repository = repository
        self._make_backend = backend
        self._backend: Backend | None = None
        self._backend_lock = threading.Lock()
        self._load_threads = load_threads
        self._max_queue_size = max_queue_size
        self._allowance = allowance
        self._models: dict[str, Model] = {}
        self._waiting: SimpleQueue[tuple[Model, Sequence[ModelFolder]]] = SimpleQueue()
        self._loaded = asyncio.Event()
        self._stopping = False

    # What the event loop asks

    def names(self) -> list[str]:
        return sorted(self._models)

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            NotFound: there is none.
        """
        try:
            return self._models[name]
        except KeyError:
            raise NotFound(f"Request for unknown model: '{name}' is not found") from None

    def version(self, name: str, version: str = "") -> ModelVersion:
        """The version to serve a request, "" for the newest ready one.

        Raises:
            NotFound: no such model or version.
            Unavailable: it is not ready; the message gives state and reason.
        """
        model = self.model(name)
        if not model.versions:
            raise _unavailable(f"model '{name}'", model.state, model.reason)
        if version:
            found = model.versions.get(version)
            if found is None:
                raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
        else:
            found = next(reversed(model.ready_versions()), None) or next(reversed(model.versions.values()))
        if found.state is not ModelState.READY:
            raise _unavailable(f"model '{name}' version {found.number}", found.state, found.reason)
        return found

    def statuses(self) -> list[ModelStatus]:
        """One for every version of every model, sorted by name and number."""
        return [status for name in self.names() for status in self._models[name].statuses()]

    def all_ready(self) -> bool:
        """Whether every version of every model is ready."""
        return all(status.state is ModelState.READY for status in self.statuses())

    def loading_is_over(self) -> bool:
        return self._loaded.is_set()

    async def loaded(self) -> list[ModelStatus]:
        """Wait until every model is ready or has failed."""
        await self._loaded.wait()
        return self.statuses()

    # Loading

    def start(self, names: Sequence[str] | None = None) -> None:
        """Begin to load the models of these names, None for all; returns at once.  On the event loop."""
        found = self._repository.models()
        wanted = sorted(found) if names is None else sorted(set(names))
        self._models = {name: Model(name, ModelState.LOADING) for name in wanted}
        for name in wanted:
            self._waiting.put((self._models[name], found.get(name, ())))
        if not wanted:
            self._loaded.set()
        loop = asyncio.get_running_loop()
        left = _CountDown(len(wanted), partial(_call_in, loop, self._loaded.set))
        for number in range(min(self._load_threads, len(wanted))):
            threading.Thread(target=self._load_waiting, args=(left,), name=f"load_{number}", daemon=True).start()

    def _load_waiting(self, left: "_CountDown") -> None:
        with contextlib.suppress(Empty):
            while True:
                model, folders = self._waiting.get_nowait()
                try:
                    self._load(model, folders)
                except (RepositoryError, ConfigError, LoadError) as error:
                    self._fail(model, str(error))
                except BaseException as error:  # MemoryError, and bugs: other models must load all the same
                    logger.exception("loading model %s failed unexpectedly", model.name)
                    self._fail(model, f"loading failed with {type(error).__name__}")
                left.down()

    @staticmethod
    def _fail(subject: Model | ModelVersion, reason: str) -> None:
        logger.error("%s", reason)
        _become_unavailable(subject, reason)

    def _load(self, model: Model, folders: Sequence[ModelFolder]) -> None:
        if len(folders) != 1:
            raise RepositoryError(
                f"model '{model.name}' is in {len(folders)} model repositories; names must differ"
                if folders
                else f"model '{model.name}' is not in the model repository"
            )
        folder = folders[0]
        backend = self._opened_backend()
        config = parse_model_config(folder.config_text(), model.name, gpu_count=backend.gpu_count())
        available = folder.versions()
        choice = choose_versions(config.version_policy, available)
        for warning in (*config.warnings, *(f"model {model.name}: {warning}" for warning in choice.warnings)):
            logger.warning("%s", warning)
        if not choice.versions:
            found = f"there is {', '.join(map(str, available))}" if available else "there is no numbered folder"
            raise RepositoryError(
                f"no version of model '{model.name}' is to be served: {found}; expected "
                f"{model.name}/<version>/{config.model_filename} and a version_policy that names it"
            )
        versions = {
            str(number): ModelVersion(
                number, config, RequestChecker(config), Scheduler(model.name, self._max_queue_size)
            )
            for number in choice.versions
        }
        for version in versions.values():
            version.state = ModelState.LOADING
        model.versions = versions
        for version in versions.values():
            try:
                self._load_version(version, folder, backend)
            except (RepositoryError, LoadError) as error:
                self._fail(version, str(error))
            except BaseException as error:
                logger.exception("loading model %s version %d failed unexpectedly", model.name, version.number)
                self._fail(version, f"loading failed with {type(error).__name__}")

    def _load_version(self, version: ModelVersion, folder: ModelFolder, backend: Backend) -> None:
        started = time.monotonic()
        config = version.config
        path = folder.model_file(version.number, config.model_filename)
        devices = placements(config.instance_groups)
        allowance = self._allowance or read_allowance()
        version.intra_op_threads = intra_op_threads(config.parameters.intra_op_thread_count, allowance, len(devices))
        shared: dict[str | None, LoadedModel] = {}
        for index, (name, device) in enumerate(devices):
            if self._stopping:
                raise LoadError("the server is stopping")
            if config.parameters.weight_sharing and device in shared:
                loaded = shared[device]
            else:
                loaded = shared[device] = backend.load(path, config, device)
            if index == 0:
                for warning in loaded.warnings:
                    logger.warning("%s", warning)
                if version.intra_op_threads > 1 and is_share(config.parameters.intra_op_thread_count, allowance):
                    version.intra_op_threads = threads_that_pay(loaded, config, version.intra_op_threads)
            version.instances.append(
                ModelInstance(
                    name,
                    loaded,
                    version.scheduler,
                    intra_op_threads=version.intra_op_threads,
                    warm_up=partial(warm_up, config=config, warmup_file=folder.warmup_file),
                )
            )
        try:
            for warm in [instance.start() for instance in version.instances]:
                warm.result()
            if self._stopping:
                raise LoadError("the server is stopping")
        except BaseException:
            version.scheduler.close(len(version.instances))
            version.instances.clear()
            raise
        version.load_seconds = time.monotonic() - started
        version.state = ModelState.READY
        logger.info(
            "model %s version %d is READY: loaded in %.0f ms, instances: %d, intra-op threads each: %d",
            config.name,
            version.number,
            version.load_seconds * 1000,
            len(version.instances),
            version.intra_op_threads,
        )

    def _opened_backend(self) -> Backend:
        with self._backend_lock:
            if self._backend is None:
                self._backend = self._make_backend()
            return self._backend

    # Stopping

    async def drain(self, timeout_seconds: float) -> bool:
        """Stop taking requests and finish those that wait, within a time; whether all were finished."""
        self._stopping = True
        versions = [version for model in self._models.values() for version in model.ready_versions()]
        for version in versions:
            version.state = ModelState.UNLOADING
            version.scheduler.close(len(version.instances))
        instances = [instance for version in versions for instance in version.instances]
        finished = await asyncio.get_running_loop().run_in_executor(None, _join, instances, timeout_seconds)
        for version in versions:
            version.scheduler.abandon()
            _become_unavailable(version, "unloaded")
        return finished


def placements(groups: Sequence[InstanceGroup]) -> list[tuple[str, str | None]]:
    """The name and device of every instance: `count` for a group, on each of its GPUs where it has them."""
    result: list[tuple[str, str | None]] = []
    for group in groups:
        devices: list[str | None] = ["cpu"]
        if group.kind == "KIND_GPU":
            devices = [f"cuda:{gpu}" for gpu in group.gpus]
        elif group.kind == "KIND_MODEL":
            devices = [None]
        targets = [device for device in devices for _ in range(group.count)]
        result += [(f"{group.name}_{index}", device) for index, device in enumerate(targets)]
    return result


def _become_unavailable(subject: Model | ModelVersion, reason: str) -> None:
    subject.reason = reason  # before the state: the event loop reads them while a thread writes
    subject.state = ModelState.UNAVAILABLE


class _CountDown:
    """Calls `then` when `down` has been called `count` times, from whichever threads."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left = count
        self._then = then
        self._lock = threading.Lock()

    def down(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._then()


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(function)


def _join(instances: Sequence[ModelInstance], timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    ended = [instance.join(deadline - time.monotonic()) for instance in instances]
    return all(ended)


def _unavailable(what: str, state: ModelState, reason: str) -> Unavailable:
    retry = RETRY_AFTER_SECONDS if state is ModelState.LOADING else None
    return Unavailable(
        f"{what} is at {state.value} state" + (f": {reason}" if reason else ""), retry_after_seconds=retry
    )
