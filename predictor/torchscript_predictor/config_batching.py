"""The part of a model configuration that says how requests wait and are merged: rules, defaults, value.

Rules and wording follow Triton's `ValidateModelConfig`.  Knows no file and no torch.
"""

from typing import Any

from torchscript_predictor.config_rules import Findings
from torchscript_predictor.scheduling.policy import DynamicBatching, QueuePolicy, TimeoutAction

FIELD = "dynamic_batching"

MAX_PRIORITY_LEVELS = 1000
"""A bound on queues; nobody tells more apart."""

MAX_MICROSECONDS = 10**12
"""Eleven days; a longer wait is a slip of the pen, and threads cannot wait for ever so long."""


def check_dynamic_batching(message: Any, findings: Findings) -> None:
    """Report what is wrong with `dynamic_batching`, or has no effect."""
    if not message.HasField(FIELD):
        return
    batching = message.dynamic_batching
    _check_sizes(message, findings)
    _check_duration(
        "max_queue_delay_microseconds",
        batching.max_queue_delay_microseconds,
        findings,
        *(FIELD, "max_queue_delay_microseconds"),
    )
    _check_levels(batching, findings)
    _check_policy(batching, batching.default_queue_policy, "default_queue_policy", findings)
    for level, policy in sorted(batching.priority_queue_policy.items()):
        _check_policy(batching, policy, f"priority_queue_policy of level {level}", findings)
    if message.max_batch_size < 2 and (batching.preferred_batch_size or batching.max_queue_delay_microseconds):
        findings.no_effect(
            "dynamic_batching preferred_batch_size and max_queue_delay_microseconds",
            f"max_batch_size is {message.max_batch_size}, so requests are not merged; queue policies are kept",
            FIELD,
        )


def _check_sizes(message: Any, findings: Findings) -> None:
    for index, size in enumerate(message.dynamic_batching.preferred_batch_size):
        path = (FIELD, "preferred_batch_size", index)
        if size < 1:
            findings.problem(f"dynamic batching preferred size must be positive, got {size}", *path)
        elif size > message.max_batch_size:
            findings.problem(
                f"dynamic batching preferred size must be <= max batch size ({message.max_batch_size}), got {size}",
                *path,
            )


def _check_levels(batching: Any, findings: Findings) -> None:
    levels = batching.priority_levels
    if levels > MAX_PRIORITY_LEVELS:
        findings.problem(
            f"priority_levels is {levels}; at most {MAX_PRIORITY_LEVELS} are allowed", FIELD, "priority_levels"
        )
    if levels and not 1 <= batching.default_priority_level <= levels:
        findings.problem(
            f"default priority level must be in range [1, {levels}], got {batching.default_priority_level}",
            *(FIELD, "default_priority_level"),
        )
    for level in sorted(batching.priority_queue_policy):
        if levels and not 1 <= level <= levels:
            findings.problem(
                f"priority queue policy must have priority level in range [1, {levels}], got {level}",
                *(FIELD, "priority_queue_policy"),
            )
    if not levels:
        for field in ("default_priority_level", "priority_queue_policy"):
            if getattr(batching, field):
                findings.no_effect(f"dynamic_batching {field}", "priority_levels is not set", FIELD, field)
    if batching.preserve_ordering and levels > 1:
        findings.problem(
            f"only one priority level is allowed when 'preserve_ordering' is true, priority_levels is {levels}",
            *(FIELD, "preserve_ordering"),
        )


def _check_policy(batching: Any, policy: Any, where: str, findings: Findings) -> None:
    path = (FIELD, where.partition(" ")[0])
    timeout = policy.default_timeout_microseconds
    _check_duration(f"{where}: default_timeout_microseconds", timeout, findings, *path)
    delays = policy.timeout_action == policy.DELAY
    if batching.preserve_ordering and delays and (timeout or policy.allow_timeout_override):
        findings.problem(
            f"{where} can not have DELAY as timeout action when 'preserve_ordering' is true",
            *(*path, "timeout_action"),
        )
    if timeout and not delays and timeout <= batching.max_queue_delay_microseconds:
        findings.warning(
            f"{where}: default_timeout_microseconds {timeout} is not more than max_queue_delay_microseconds "
            f"{batching.max_queue_delay_microseconds}: a request that waits for company is rejected before it is "
            "executed",
            *path,
        )


def _check_duration(what: str, microseconds: int, findings: Findings, *path: str | int) -> None:
    if microseconds > MAX_MICROSECONDS:
        findings.problem(f"{what} is {microseconds}; it must be at most {MAX_MICROSECONDS}", *path)


def fill_dynamic_batching(message: Any) -> None:
    """Make the message what Triton's `/config` shows."""
    if message.HasField(FIELD) and message.max_batch_size > 0 and not message.dynamic_batching.preferred_batch_size:
        message.dynamic_batching.preferred_batch_size.append(message.max_batch_size)


def read_dynamic_batching(message: Any) -> DynamicBatching | None:
    """The value of a message that keeps the rules; None where it does not ask for dynamic batching."""
    if not message.HasField(FIELD):
        return None
    batching = message.dynamic_batching
    by_level = batching.priority_queue_policy
    return DynamicBatching(
        preferred_batch_size=tuple(batching.preferred_batch_size) if message.max_batch_size > 1 else (),
        max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
        preserve_ordering=batching.preserve_ordering,
        default_priority_level=batching.default_priority_level if batching.priority_levels else 1,
        queue_policies=tuple(
            _policy(by_level.get(level, batching.default_queue_policy))
            for level in range(1, max(1, batching.priority_levels) + 1)
        ),
    )


def _policy(policy: Any) -> QueuePolicy:
    return QueuePolicy(
        timeout_action=TimeoutAction(policy.timeout_action),
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )
