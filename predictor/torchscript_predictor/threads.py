"""How many threads may execute models: each instance's intra-op threads, and all models' together.

The decision is a pure function of what a small reader found: settings in the environment and the
CPUs that this process may really use.  torch's own default is all cores of the host, which in a
container with a CPU quota means throttling.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

WORTH_IT = 1.25
"""Small networks run slower on two threads than on one, and the second CPU is then missing elsewhere (the
transformer on the same machine).  Large ones gain nearly a factor of two."""

WAIT_POLICY = ("OMP_WAIT_POLICY", "PASSIVE")
"""OpenMP's idle threads sleep instead of spinning.  Spinning gains microseconds on an idle machine and loses
milliseconds on a busy one: on two busy cores an EfficientNet-Lite0 took 251 ms instead of 29 ms."""


def calm_openmp(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the wait policy unless somebody has; it counts only before torch is imported."""
    name, value = WAIT_POLICY
    environment.setdefault(name, value)


@dataclass(frozen=True, slots=True)
class CpuAllowance:
    """What this process may use: `variable_threads` from the environment, if set, and whole or part CPUs."""

    cpus: float
    variable_threads: int | None = None

    @property
    def whole_cpus(self) -> int:
        """How many threads can run without taking turns, at least 1."""
        return max(1, int(self.cpus))


def asked_threads(parameter: int | None, allowance: CpuAllowance) -> int | None:
    """What somebody asked for: INTRA_OP_THREAD_COUNT of the model, else OMP_NUM_THREADS / MKL_NUM_THREADS."""
    return parameter if parameter is not None else allowance.variable_threads


def intra_op_threads(parameter: int | None, allowance: CpuAllowance, instances: int) -> int:
    """Threads for one of a model's `instances`: what was asked for, else an equal share.

    At least 1, and never more than there are CPUs: threads that take turns on a CPU only slow each other down.
    """
    asked = asked_threads(parameter, allowance)
    share = int(allowance.cpus / max(1, instances))
    return max(1, min(share if asked is None else asked, allowance.whole_cpus))


def thread_warnings(parameter: int | None, allowance: CpuAllowance, instances: int) -> list[str]:
    """What an operator should know about what was asked for."""
    asked, cpus = asked_threads(parameter, allowance), allowance.whole_cpus
    if asked is None:
        return []
    source = "INTRA_OP_THREAD_COUNT" if parameter is not None else " or ".join(THREAD_VARIABLES)
    if asked > cpus:
        return [f"{source} is {asked}, more than the CPUs that this process may use: it gets {cpus}"]
    if asked * instances > cpus:
        return [
            f"{source} is {asked}, with {instances} instances on {cpus} CPUs: at most {cpus // asked} of them execute "
            "at a time"
        ]
    return []


class ExecutionLimit:
    """At most so many threads execute models at a time, whichever models they are.

    First come, first served, so that an execution with many threads is not overtaken for ever.  A wider one
    than the limit counts as wide as the limit.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._free = threads
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()  # how many, and what to release when they are free

    def __repr__(self) -> str:
        busy = self.threads - self._free
        return f"<ExecutionLimit: {busy} of {self.threads} threads execute, {len(self._waiting)} executions wait>"

    @contextmanager
    def held(self, threads: int) -> Iterator[None]:
        """Have so many threads for the time of a block."""
        self.acquire(threads)
        try:
            yield
        finally:
            self.release(threads)

    def acquire(self, threads: int) -> None:
        """Block until so many more threads may execute; 0 is always free."""
        if not threads:
            return
        threads = min(threads, self.threads)
        with self._lock:
            if self._free >= threads and not self._waiting:
                self._free -= threads
                return
            granted = threading.Lock()
            granted.acquire()
            self._waiting.append((threads, granted))
        granted.acquire()

    def release(self, threads: int) -> None:
        """Give back what was acquired."""
        with self._lock:
            self._free += min(threads, self.threads)
            while self._waiting and self._waiting[0][0] <= self._free:
                wanted, granted = self._waiting.popleft()
                self._free -= wanted
                granted.release()


def is_share(parameter: int | None, allowance: CpuAllowance) -> bool:
    """Whether `intra_op_threads` had nobody's word to go by: then fewer threads may turn out better."""
    return asked_threads(parameter, allowance) is None


def several_pay(seconds_with_one: float, seconds_with_several: float) -> bool:
    """Whether an execution with several threads is enough faster than with one to be worth their CPUs."""
    return seconds_with_one >= WORTH_IT * seconds_with_several


def read_allowance(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> CpuAllowance:
    """The allowance of this process: the least of its CPU affinity and its cgroup's quota (v2, else v1).

    Files under `root` that are absent or odd mean no quota.
    """
    try:
        cpus = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        cpus = float(os.cpu_count() or 1)
    quota = cgroup_quota(root)
    if quota is not None:
        cpus = min(cpus, quota)
    return CpuAllowance(cpus, _variable_threads(environment))


def _variable_threads(environment: Mapping[str, str]) -> int | None:
    for name in THREAD_VARIABLES:
        # OMP_NUM_THREADS may list one number per nesting level; the first is the outermost
        first = environment.get(name, "").split(",")[0].strip()
        if first.isascii() and first.isdecimal() and int(first) >= 1:
            return int(first)
    return None


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """The CPUs that the tightest cgroup around this process allows, None for no limit.

    The process's own group counts and every group above it.
    """
    groups = _own_groups(root)
    quotas = [
        *(_quota_v2(folder) for folder in _up(root / "sys/fs/cgroup", groups.get("", "/"))),
        *(_quota_v1(folder) for folder in _up(root / "sys/fs/cgroup/cpu", groups.get("cpu", "/"))),
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _own_groups(root: Path) -> dict[str, str]:
    """This process's group in each hierarchy by controller; "" is cgroup v2's."""
    groups = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _up(mount: Path, group: str) -> list[Path]:
    """The group's folder and those above it.  In a container the group's own path may not exist: skipped."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _quota_v2(folder: Path) -> float | None:
    """cpu.max holds "<quota> <period>" in microseconds, or "max <period>"."""
    match _read(folder / "cpu.max").split():
        case [quota, period]:
            return _ratio(quota, period)
        case _:
            return None


def _quota_v1(folder: Path) -> float | None:
    """cpu.cfs_quota_us is -1 for no limit."""
    return _ratio(_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:
        return int(quota) / int(period)
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
