"""The life of models: which are loading, ready or failed, and why; loading, reloading, unloading, polling.

All state changes here, on the event loop; threads load, and a thread that loads a model for the first time leaves
behind what the loop reads, one attribute at a time.  What a load or a look at the repository leads to is decided by
`control`; this does it.  Knows no protocol and no torch.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from oip.errors import InferenceError, InvalidArgument, NotFound, Unavailable
from oip.server.extensions import IndexEntry
from torchscript_predictor.backends import Backend, LoadError
from torchscript_predictor.background import in_thread
from torchscript_predictor.control import (
    Fingerprint,
    Outcome,
    Source,
    needs_load,
    outcome,
    poll_plan,
    seconds_to_next_look,
)
from torchscript_predictor.fingerprint import fingerprint
from torchscript_predictor.instances import ModelInstance
from torchscript_predictor.loading import ModelLoader, ModelVersion, Versions
from torchscript_predictor.metrics import VersionFigures
from torchscript_predictor.model_config import ConfigError
from torchscript_predictor.overrides import Override, make_override
from torchscript_predictor.repository import ModelFolder, ModelRepository, RepositoryError
from torchscript_predictor.scheduling.scheduler import RETRY_AFTER_SECONDS
from torchscript_predictor.states import ModelState, ModelStatus
from torchscript_predictor.statistics import Recorder
from torchscript_predictor.threads import CpuAllowance

logger = logging.getLogger(__name__)

UNLOADED = "unloaded"
"""The reason of what was unloaded on purpose."""


class LoadRefused(Exception):
    """A load that left at least one version unserved; says why."""


class NoSuchModel(LoadRefused):
    """The repository has no folder for it."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Model:
    """A model by name.  While it has no versions, `state` and `reason` are its own; then its versions'."""

    name: str
    state: ModelState = ModelState.UNKNOWN
    reason: str = ""
    versions: Versions = field(default_factory=dict)
    wanted: bool = False
    """Whether the server is ready only while this model is."""
    source: Source | None = None
    """What `versions` were loaded from; None while not all of them are ready."""
    attempted: Fingerprint | None = None
    """Of what was last loaded, or tried to be."""
    override: Override | None = None
    unloaded: tuple[str, ...] = ()
    """The numbers of versions that served and were unloaded."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def ready_versions(self) -> list[ModelVersion]:
        """Ascending."""
        return [version for version in self.versions.values() if version.state is ModelState.READY]

    def statuses(self) -> list[ModelStatus]:
        if not self.versions:
            return [ModelStatus(self.name, number, self.state, self.reason) for number in self.unloaded or ("-",)]
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
        drain_seconds: float = 30.0,
        allowance: CpuAllowance | None = None,
        execution_threads: int | None = None,
    ) -> None:
        """
        Args:
            backend: makes the backend, in a loading thread: importing torch takes seconds.
            load_threads: how many models may load at the same time.
            drain_seconds: how long a version that is to end may finish its requests.
            allowance: CPUs for intra-op threads; None reads the machine's.
            execution_threads: how many may execute models at a time; None for as many as the allowance's CPUs.
        """
        self._repository = repository
        self._recorders: dict[tuple[str, str], Recorder] = {}
        self._loader = ModelLoader(
            backend,
            self._recorder,
            max_queue_size=max_queue_size,
            allowance=allowance,
            execution_threads=execution_threads,
        )
        self._load_room = asyncio.Semaphore(load_threads)
        self._drain_seconds = drain_seconds
        self._started = False
        self._models: dict[str, Model] = {}
        self._new: WeakValueDictionary[str, Model] = WeakValueDictionary()  # asked for, not found yet
        self._loaded = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # What the event loop asks

    def names(self) -> list[str]:
        return sorted(self._models)

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            NotFound: there is none.
            Unavailable: nobody knows yet; sockets open a moment before the repository is read.
        """
        if not self._started:
            raise Unavailable("the server is starting, its models are not known yet", retry_after_seconds=1)
        try:
            return self._models[name]
        except KeyError:
            raise NotFound(f"Request for unknown model: '{name}' is not found") from None

    def version(self, name: str, version: str = "") -> ModelVersion:
        """The version to serve a request, "" for the newest ready one.

        Raises:
            NotFound: no such model or version, or it was unloaded.
            Unavailable: it is not ready; the message gives state and reason.
        """
        model = self.model(name)
        if not model.versions:
            if model.reason == UNLOADED:
                raise NotFound(f"Request for unknown model: '{name}' has no available versions; it was unloaded")
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

    def index(self) -> list[IndexEntry]:
        """What the repository holds and what is served, sorted by name and number."""
        entries = []
        for name in sorted({*self._repository.models(), *self._models}):
            model = self._models.get(name)
            if model is None:
                entries.append(IndexEntry(name))
                continue
            for status in model.statuses():
                version = "" if status.version == "-" else status.version
                entries.append(IndexEntry(name, version, status.state.value, status.reason))
        return entries

    def served(self) -> list[ModelVersion]:
        """The ready versions, sorted by name and number."""
        return [version for name in self.names() for version in self._models[name].ready_versions()]

    def figures(self) -> list[VersionFigures]:
        """What the metrics show of the ready versions."""
        return [
            VersionFigures(version.recorder, version.scheduler.queued, version.load_seconds)
            for version in self.served()
        ]

    def all_ready(self) -> bool:
        """Whether every version of every model that should serve is ready."""
        return self._started and all(
            status.state is ModelState.READY
            for model in self._models.values()
            if model.wanted
            for status in model.statuses()
        )

    def loading_is_over(self) -> bool:
        """Whether every model that was to be loaded at start is ready or has failed."""
        return self._loaded.is_set()

    async def loaded(self) -> list[ModelStatus]:
        """Wait until every model that was to be loaded at start is ready or has failed."""
        await self._loaded.wait()
        return self.statuses()

    # Loading

    def start(self, names: Sequence[str] | None = None, poll_seconds: float = 0.0) -> None:
        """Begin to load the models of these names, None for all; returns at once.  On the event loop.

        Args:
            poll_seconds: how often to look at the repository for changes afterwards; 0 for never.
        """
        wanted = sorted(self._repository.models() if names is None else set(names))
        self._models = {name: Model(name, ModelState.LOADING, wanted=True) for name in wanted}
        self._started = True
        self._spawn(self._load_all(wanted, poll_seconds))

    async def _load_all(self, names: Sequence[str], poll_seconds: float) -> None:
        if not names:
            # the first load that a client asks for need not wait for imports
            with contextlib.suppress(LoadError):  # said again then
                await in_thread(self._loader.prepare, "prepare")
        await self._load_each(names)
        self._loaded.set()
        if poll_seconds:
            await self._poll(poll_seconds)

    async def _load_each(self, names: Sequence[str]) -> None:
        async def load(name: str) -> None:
            model = self._models[name]
            try:
                await self._change(name)
            except LoadRefused:
                pass  # it was logged
            except Exception as error:  # a bug of ours: other models must load all the same
                logger.exception("loading model %s failed unexpectedly", name)
                if not model.versions:
                    model.state, model.reason = ModelState.UNAVAILABLE, f"loading failed with {type(error).__name__}"
            model.wanted = True

        await asyncio.gather(*map(load, names))

    async def load(self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model; see `ModelControl.load`.

        A load that has begun goes on if the caller leaves.
        """
        await asyncio.shield(self._spawn(self._load_asked(name, config, files or {})))

    async def _load_asked(self, name: str, config: str | None, files: Mapping[str, bytes]) -> None:
        override = await in_thread(partial(make_override, name, config, files), "override")
        try:
            await self._change(name, override)
        except NoSuchModel as error:
            raise NotFound(f"failed to load '{name}', failed to poll from model repository: {error}") from None
        except LoadRefused as error:
            raise InvalidArgument(f"load failed for model '{name}': {error}") from None
        self._models[name].wanted = True

    async def _change(self, name: str, override: Override | None = None) -> None:
        """Load what the repository, or an override, has for a model now.

        Raises:
            LoadRefused: a version of it is not ready; those that served before still do.
        """
        model = self._models.get(name) or self._new.setdefault(name, Model(name))
        async with model.changing:
            kept = False
            try:
                kept = await self._change_locked(model, override)
            finally:
                if override is not None and not kept:
                    await in_thread(override.discard)

    async def _change_locked(self, model: Model, override: Override | None) -> bool:
        """As `_change`; returns whether a new override has become the model's."""
        given = override or model.override
        reason = ""
        try:
            async with self._load_room:
                folder, source = await in_thread(partial(self._find, model.name, given), "find")
        except RepositoryError as error:
            return self._not_there(model, str(error))
        if not needs_load(model.source, source):
            return False
        self._models[model.name] = model
        model.attempted = source.fingerprint
        serves = bool(model.ready_versions())

        def publish(versions: Versions) -> None:
            if not serves:
                model.versions = versions

        if not serves:
            model.versions, model.unloaded, model.state, model.reason = {}, (), ModelState.LOADING, ""
        versions: Versions = {}
        try:
            async with self._load_room:
                versions = await in_thread(partial(self._loader.load, folder, publish), f"load_{model.name}")
        except (RepositoryError, ConfigError, LoadError) as error:
            reason = str(error)
            logger.error("%s", reason)
        failed = {number: each.reason for number, each in versions.items() if each.state is not ModelState.READY}
        reason = reason or "; ".join(f"version {number} is at UNAVAILABLE state: {failed[number]}" for number in failed)
        if outcome(len(failed) + (not versions), serves=serves) is Outcome.KEEP:
            logger.error("model %s: the reload failed, the versions that served before still do", model.name)
            await self._retire(versions.values())
            self._forget_recorders(model)
            raise LoadRefused(reason)
        old = [*model.versions.values()] if serves else []
        model.versions, model.source = versions, None if reason else source
        if not versions:
            model.state, model.reason = ModelState.UNAVAILABLE, reason
        self._forget_recorders(model)
        if old:
            self._spawn(self._retire(old))
        if reason:
            await in_thread(self._loader.give_memory_back, "give_memory_back")
            raise LoadRefused(reason)
        if override is None:
            return False
        if model.override is not None:
            await in_thread(model.override.discard)
        model.override = override
        return True

    def _not_there(self, model: Model, reason: str) -> bool:
        if model.name not in self._models or model.versions or model.reason == UNLOADED:
            raise NoSuchModel(reason)
        logger.error("%s", reason)
        model.state, model.reason = ModelState.UNAVAILABLE, reason
        raise LoadRefused(reason)

    def _find(self, name: str, override: Override | None) -> tuple[ModelFolder, Source]:
        """A model's folder and what is in it.  In a thread.

        Raises:
            RepositoryError: there is none, or there are several.
        """
        folders = self._repository.models().get(name, [])
        if override is not None:
            folder = override.applied(name, folders[0] if len(folders) == 1 else None)
            if folder is not None:
                return folder, Source(fingerprint(folder.path), override.number)
        if len(folders) != 1:
            raise RepositoryError(
                f"model '{name}' is in {len(folders)} model repositories; names must differ"
                if folders
                else f"model '{name}' is not in the model repository"
            )
        return folders[0], Source(fingerprint(folders[0].path))

    # Polling

    async def _poll(self, poll_seconds: float) -> None:
        before = self._acted()
        wait = poll_seconds
        while True:
            await asyncio.sleep(wait)
            try:
                now = await in_thread(self._look, "poll")
            except OSError as error:
                logger.warning("the model repository cannot be looked at: %s", error.strerror)
                continue
            plan = poll_plan(self._acted(), before, now)
            before = now
            for name in plan.unload:
                await self.unload(name)
                self._models.pop(name, None)
            for name in plan.load:
                self._models.setdefault(name, Model(name, ModelState.LOADING)).attempted = now[name]
            await self._load_each(plan.load)
            wait = seconds_to_next_look(plan, poll_seconds)

    def _acted(self) -> dict[str, Fingerprint]:
        return {name: model.attempted or frozenset() for name, model in self._models.items()}

    def _look(self) -> dict[str, Fingerprint]:
        return {
            name: frozenset().union(*(fingerprint(folder.path) for folder in folders))
            for name, folders in self._repository.models().items()
        }

    # Ending

    async def unload(self, name: str) -> None:
        """Finish a model's requests and give its memory back; a no-op for one that is not here."""
        await asyncio.shield(self._spawn(self._unload(name)))

    async def _unload(self, name: str) -> None:
        model = self._models.get(name)
        if model is None:
            return
        async with model.changing:
            model.wanted = False
            served = tuple(str(version.number) for version in model.ready_versions())
            await self._retire(model.versions.values())
            model.versions, model.source = {}, None
            model.unloaded = served or model.unloaded
            model.state, model.reason = ModelState.UNAVAILABLE, UNLOADED
            self._forget_recorders(model)
            override, model.override = model.override, None
            if override is not None:
                await in_thread(override.discard)

    async def _retire(self, versions: Iterable[ModelVersion]) -> None:
        """End those that are ready: no new requests, finish those that wait, give the memory back."""
        ending = [version for version in versions if version.state is ModelState.READY]
        await self._end(ending, self._drain_seconds)
        for version in ending:
            version.instances.clear()
        ending.clear()
        await in_thread(self._loader.give_memory_back, "give_memory_back")

    async def _end(self, versions: Sequence[ModelVersion], timeout_seconds: float) -> bool:
        for version in versions:
            version.state = ModelState.UNLOADING
            version.scheduler.close()
        instances = [instance for version in versions for instance in version.instances]
        finished = await in_thread(partial(_join, instances, timeout_seconds), "end")
        for version in versions:
            version.scheduler.abandon()
            version.reason = UNLOADED
            version.state = ModelState.UNAVAILABLE
        return finished

    async def drain(self, timeout_seconds: float) -> bool:
        """Stop taking requests and finish those that wait, within a time; whether all were finished."""
        self._loader.stop()
        for task in self._tasks:
            task.cancel()
        finished = await self._end(self.served(), timeout_seconds)
        for model in self._models.values():
            if model.override is not None:
                model.override.discard()
        return finished

    # Helpers

    def _recorder(self, name: str, version: str) -> Recorder:
        return self._recorders.setdefault((name, version), Recorder(name, version))

    def _forget_recorders(self, model: Model) -> None:
        for name, version in [*self._recorders]:
            if name == model.name and version not in model.versions:
                del self._recorders[name, version]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, InferenceError):
            logger.error("a change of the models failed; this is a bug", exc_info=error)


def _join(instances: Sequence[ModelInstance], timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    ended = [instance.join(deadline - time.monotonic()) for instance in instances]
    return all(ended)


def _unavailable(what: str, state: ModelState, reason: str) -> Unavailable:
    retry = RETRY_AFTER_SECONDS if state is ModelState.LOADING else None
    return Unavailable(
        f"{what} is at {state.value} state" + (f": {reason}" if reason else ""), retry_after_seconds=retry
    )
