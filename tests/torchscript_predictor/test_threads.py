"""Intra-op threads: the decision, and what the machine says."""

import threading

import pytest

from torchscript_predictor.threads import (
    CpuAllowance,
    ExecutionLimit,
    calm_openmp,
    cgroup_quota,
    intra_op_threads,
    is_share,
    read_allowance,
    thread_warnings,
)


@pytest.mark.parametrize(
    ("parameter", "allowance", "instances", "threads"),
    [
        (3, CpuAllowance(8.0, 5), 2, 3),
        (None, CpuAllowance(8.0, 5), 2, 5),
        (None, CpuAllowance(8.0), 2, 4),
        (None, CpuAllowance(8.0), 3, 2),
        (None, CpuAllowance(1.5), 1, 1),
        (None, CpuAllowance(0.5), 4, 1),
        (None, CpuAllowance(2.0), 0, 2),
        (16, CpuAllowance(8.0), 1, 8),  # never more than there are CPUs
        (None, CpuAllowance(2.5, 64), 1, 2),
        (2, CpuAllowance(0.5), 1, 1),
    ],
)
def test_decision(parameter, allowance, instances, threads):
    assert intra_op_threads(parameter, allowance, instances) == threads


def write(root, **files):
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "5\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "0\n"}, None),
        # the tightest of the process's own group and those above it
        (
            {
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000",
                "sys/fs/cgroup/pod/container/cpu.max": "400000 100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
    ],
)
def test_cgroup_quota(tmp_path, files, quota):
    write(tmp_path, **files)
    assert cgroup_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "none", "MKL_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "0"}, None),
    ],
)
def test_variables(tmp_path, environment, threads):
    assert read_allowance(environment, tmp_path).variable_threads == threads


def test_the_quota_lowers_the_affinity(tmp_path):
    write(tmp_path, **{"sys/fs/cgroup/cpu.max": "10000 100000"})
    assert read_allowance({}, tmp_path).cpus == 0.1
    assert read_allowance({}, tmp_path / "none").cpus >= 1


@pytest.mark.parametrize(
    ("parameter", "variable", "expected"), [(None, None, True), (2, None, False), (None, 2, False), (2, 2, False)]
)
def test_only_a_share_is_open_to_change(parameter, variable, expected):
    assert is_share(parameter, CpuAllowance(4.0, variable)) is expected


@pytest.mark.parametrize(("environment", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_idle_threads_sleep_unless_somebody_said_otherwise(environment, policy):
    calm_openmp(environment)
    assert environment["OMP_WAIT_POLICY"] == policy


@pytest.mark.parametrize(
    ("parameter", "allowance", "instances", "warning"),
    [
        (None, CpuAllowance(2.0), 8, None),
        (2, CpuAllowance(4.0), 2, None),
        (
            8,
            CpuAllowance(2.0),
            1,
            "INTRA_OP_THREAD_COUNT is 8, more than the CPUs that this process may use: it gets 2",
        ),
        (None, CpuAllowance(2.0, 3), 1, "OMP_NUM_THREADS or MKL_NUM_THREADS is 3, more than"),
        (2, CpuAllowance(5.0), 3, "with 3 instances on 5 CPUs: at most 2 of them execute at a time"),
    ],
)
def test_what_was_asked_for_in_vain_is_said(parameter, allowance, instances, warning):
    warnings = thread_warnings(parameter, allowance, instances)
    assert len(warnings) == (warning is not None)
    assert all(warning in each for each in warnings)


class Execution(threading.Thread):
    """Holds some threads of a limit until told to end."""

    def __init__(self, limit, threads):
        super().__init__(daemon=True)
        self.limit, self.threads = limit, threads
        self.executes, self.end = threading.Event(), threading.Event()
        self.start()

    def run(self):
        with self.limit.held(self.threads):
            self.executes.set()
            self.end.wait(5)

    def finish(self):
        self.end.set()
        self.join(5)


def until_waiting(limit, executions):
    while f"{executions} executions wait" not in repr(limit):
        pass


def test_the_limit_is_kept_and_a_wide_execution_is_not_overtaken():
    limit = ExecutionLimit(3)
    first = Execution(limit, 2)
    assert first.executes.wait(5)
    wide = Execution(limit, 3)
    until_waiting(limit, 1)
    narrow = Execution(limit, 1)  # would fit, but came later
    until_waiting(limit, 2)
    assert repr(limit) == "<ExecutionLimit: 2 of 3 threads execute, 2 executions wait>"
    first.finish()
    assert wide.executes.wait(5)
    assert not narrow.executes.is_set()
    wide.finish()
    assert narrow.executes.wait(5)
    narrow.finish()
    assert repr(limit) == "<ExecutionLimit: 0 of 3 threads execute, 0 executions wait>"


def test_an_execution_wider_than_the_limit_has_it_to_itself():
    limit = ExecutionLimit(2)
    with limit.held(5):
        assert repr(limit) == "<ExecutionLimit: 2 of 2 threads execute, 0 executions wait>"
        with limit.held(0):  # what computes elsewhere
            pass
