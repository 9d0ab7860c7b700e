"""How many intra-op threads each model instance may use.

The decision is a pure function of what a small reader found: settings in the environment and the
CPUs that this process may really use.  torch's own default is all cores of the host, which in a
container with a CPU quota means throttling.
"""

import os
from collections.abc import Mapping, MutableMapping
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


def intra_op_threads(parameter: int | None, allowance: CpuAllowance, instances: int) -> int:
    """Threads for one of a model's `instances`, at least 1.

    INTRA_OP_THREAD_COUNT of the model, else OMP_NUM_THREADS / MKL_NUM_THREADS, else an equal share.
    """
    if parameter is not None:
        return parameter
    if allowance.variable_threads is not None:
        return allowance.variable_threads
    return max(1, int(allowance.cpus / max(1, instances)))


def is_share(parameter: int | None, allowance: CpuAllowance) -> bool:
    """Whether `intra_op_threads` had nobody's word to go by: then fewer threads may turn out better."""
    return parameter is None and allowance.variable_threads is None


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
