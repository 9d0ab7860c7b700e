"""Loads a model out of its folder: configuration, versions, instances, warm-up.

Works in the calling thread and may take seconds; one `ModelLoader` is used by several threads.  Decides nothing about
what served before.  Knows no protocol and no torch: a `Backend` brings the latter.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torchscript_predictor.backends import Backend, CachesMemory, LoadedModel, LoadError
from torchscript_predictor.checks import RequestChecker
from torchscript_predictor.configure import read_model_config
from torchscript_predictor.instances import ModelInstance
from torchscript_predictor.memory import give_memory_back
from torchscript_predictor.model_config import ConfigError, InstanceGroup, ModelConfig
from torchscript_predictor.repository import ModelFolder, RepositoryError
from torchscript_predictor.scheduling.scheduler import Scheduler
from torchscript_predictor.states import ModelState
from torchscript_predictor.statistics import Recorder
from torchscript_predictor.threads import (
    CpuAllowance,
    ExecutionLimit,
    intra_op_threads,
    is_share,
    read_allowance,
    thread_warnings,
)
from torchscript_predictor.version_policy import choose_versions
from torchscript_predictor.warmup import threads_that_pay, warm_up
from torchscript_predictor.weight_sharing import may_share

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class ModelVersion:
    """One version of a model: its state, and what serves it while it is ready."""

    number: int
    config: ModelConfig
    checker: RequestChecker
    scheduler: Scheduler
    recorder: Recorder
    labels: Mapping[str, Sequence[str]]
    """Of outputs that have a label file, by name."""
    state: ModelState = ModelState.UNKNOWN
    reason: str = ""
    load_seconds: float = 0.0
    intra_op_threads: int = 0
    instances: list[ModelInstance] = field(default_factory=list)


Versions = dict[str, ModelVersion]
"""By number, ascending."""


class ModelLoader:
    """Makes versions that serve out of folders."""

    def __init__(
        self,
        backend: Callable[[], Backend],
        recorder: Callable[[str, str], Recorder],
        *,
        max_queue_size: int = 1024,
        allowance: CpuAllowance | None = None,
        execution_threads: int | None = None,
    ) -> None:
        """
        Args:
            backend: makes the backend, in a loading thread: importing torch takes seconds.
            recorder: gives what counts for a model's version.
            allowance: CPUs for intra-op threads; None reads the machine's.
            execution_threads: how many may execute models at a time; None for as many as the allowance's CPUs.
        """
        self._make_backend = backend
        self._backend: Backend | None = None
        self._backend_lock = threading.Lock()
        self._recorder = recorder
        self._max_queue_size = max_queue_size
        self._allowance = allowance or read_allowance()
        self._limit = ExecutionLimit(execution_threads or self._allowance.whole_cpus)
        if self._limit.threads < self._allowance.cpus:  # no instance may be wider than the limit
            self._allowance = replace(self._allowance, cpus=float(self._limit.threads))
        self._stopping = False

    def give_memory_back(self) -> None:
        """What models that are gone have left behind, to the machine.  In a thread."""
        give_memory_back()
        backend: object = self._backend
        if isinstance(backend, CachesMemory):
            backend.release_memory()

    def stop(self) -> None:
        """Let loads fail soon."""
        self._stopping = True

    def prepare(self) -> None:
        """Make the backend now.

        Raises:
            LoadError: it cannot be made.
        """
        self._opened_backend()

    def load(self, folder: ModelFolder, publish: Callable[[Versions], None]) -> Versions:
        """Load the versions that the configuration wants; each ends READY, or UNAVAILABLE with its reason.

        Args:
            publish: is told the versions before they are loaded.

        Raises:
            RepositoryError, ConfigError, LoadError: there are no versions to load, the message says why.
        """
        try:
            return self._load(folder, publish)
        except (RepositoryError, ConfigError, LoadError):
            raise
        except BaseException as error:  # MemoryError, and bugs: other models must load all the same
            logger.exception("loading model %s failed unexpectedly", folder.name)
            raise LoadError(f"loading failed with {type(error).__name__}") from None

    def _load(self, folder: ModelFolder, publish: Callable[[Versions], None]) -> Versions:
        backend = self._opened_backend()
        config = read_model_config(folder, backend)
        available = folder.versions()
        choice = choose_versions(config.version_policy, available)
        for warning in (*config.warnings, *(f"model {folder.name}: {warning}" for warning in choice.warnings)):
            logger.warning("%s", warning)
        if not choice.versions:
            found = f"there is {', '.join(map(str, available))}" if available else "there is no numbered folder"
            raise RepositoryError(
                f"no version of model '{folder.name}' is to be served: {found}; expected "
                f"{folder.name}/<version>/{config.model_filename} and a version_policy that names it"
            )
        labels = {
            output.name: folder.labels(output.label_filename)
            for output in config.message.output
            if output.label_filename
        }
        versions = {str(number): self._unloaded(number, config, labels) for number in choice.versions}
        publish(versions)
        for version in versions.values():
            try:
                self._load_version(version, folder, backend)
            except (RepositoryError, LoadError) as error:
                fail(version, str(error))
            except BaseException as error:
                logger.exception("loading model %s version %d failed unexpectedly", folder.name, version.number)
                fail(version, f"loading failed with {type(error).__name__}")
        return versions

    def _unloaded(self, number: int, config: ModelConfig, labels: Mapping[str, Sequence[str]]) -> ModelVersion:
        scheduler = Scheduler(
            config.name,
            self._max_queue_size,
            max_batch_size=config.max_batch_size,
            dynamic_batching=config.dynamic_batching,
        )
        recorder = self._recorder(config.name, str(number))
        return ModelVersion(
            number, config, RequestChecker(config), scheduler, recorder, labels, state=ModelState.LOADING
        )

    def _load_version(self, version: ModelVersion, folder: ModelFolder, backend: Backend) -> None:
        started = time.monotonic()
        config = version.config
        path = folder.model_file(version.number, config.model_filename)
        devices = placements(config.instance_groups)
        asked = config.parameters.intra_op_thread_count
        version.intra_op_threads = intra_op_threads(asked, self._allowance, len(devices))
        for warning in thread_warnings(asked, self._allowance, len(devices)):
            logger.warning("model %s: %s", config.name, warning)
        try:
            loads = self._add_instances(version, folder, path, devices, backend)
            for warm in [instance.start() for instance in version.instances]:
                warm.result()
            self._check_going_on()
        except BaseException:
            version.scheduler.close()
            version.instances.clear()
            raise
        version.load_seconds = time.monotonic() - started
        version.state = ModelState.READY
        logger.info(
            "model %s version %d is READY: loaded in %.0f ms, instances: %d (loaded copies: %d), "
            "intra-op threads each: %d; all models together execute on %d threads at most",
            config.name,
            version.number,
            version.load_seconds * 1000,
            len(version.instances),
            loads,
            version.intra_op_threads,
            self._limit.threads,
        )

    def _add_instances(
        self,
        version: ModelVersion,
        folder: ModelFolder,
        path: Path,
        devices: Sequence[tuple[str, str | None]],
        backend: Backend,
    ) -> int:
        """Make the instances, not started yet; returns how many copies were loaded for them."""
        config = version.config
        asked = config.parameters.intra_op_thread_count
        copies: dict[str | None, LoadedModel] = {}
        shares: dict[str | None, bool] = {}
        loads = 0
        for index, (name, device) in enumerate(devices):
            self._check_going_on()
            if device in copies and device not in shares:  # asked when it matters: before the second copy
                with self._executing(copies[device], version.intra_op_threads):
                    shares[device] = may_share(copies[device], config, device, folder.warmup_file)
            if shares.get(device):
                loaded = copies[device]
            else:
                loaded = copies[device] = backend.load(path, config, device)
                loads += 1
            if index == 0:
                for warning in loaded.warnings:
                    logger.warning("%s", warning)
                if version.intra_op_threads > 1 and is_share(asked, self._allowance):
                    with self._executing(loaded, version.intra_op_threads):
                        version.intra_op_threads = threads_that_pay(loaded, config, version.intra_op_threads)
            version.instances.append(
                ModelInstance(
                    name,
                    loaded,
                    version.scheduler,
                    intra_op_threads=version.intra_op_threads,
                    warm_up=partial(warm_up, config=config, warmup_file=folder.warmup_file),
                    limit=self._limit,
                    recorder=version.recorder,
                    executing_threads=executing_threads(device, version.intra_op_threads, backend.gpu_count()),
                )
            )
        return loads

    @contextlib.contextmanager
    def _executing(self, model: LoadedModel, threads: int) -> Iterator[None]:
        """Let the calling thread execute the model, as an instance would."""
        model.enter_thread(threads)
        with self._limit.held(threads):
            yield

    def _opened_backend(self) -> Backend:
        with self._backend_lock:
            if self._backend is None:
                self._backend = self._make_backend()
            return self._backend

    def _check_going_on(self) -> None:
        if self._stopping:
            raise LoadError("the server is stopping")


def fail(version: ModelVersion, reason: str) -> None:
    """Log why a version cannot serve, and let it say so."""
    logger.error("%s", reason)
    version.reason = reason  # before the state: the event loop reads them while a thread writes
    version.state = ModelState.UNAVAILABLE


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


def executing_threads(device: str | None, intra_op_threads: int, gpu_count: int) -> int:
    """How many of this machine's CPUs an execution keeps busy: none where a GPU computes.

    A KIND_MODEL instance (None) has placed itself; where there is a GPU, that is where.
    """
    on_gpu = gpu_count > 0 if device is None else device != "cpu"
    return 0 if on_gpu else intra_op_threads
