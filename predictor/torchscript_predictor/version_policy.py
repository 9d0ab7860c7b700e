"""Which versions of a model to serve: the policy's decision as a pure function.

Knows no file and no model.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """`version_policy` of a model configuration.

    `num_versions` counts for "latest" alone, `versions` for "specific" alone.
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    num_versions: int = 1
    versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionChoice:
    """The versions to serve, in ascending order, and what to tell the operator."""

    versions: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def choose_versions(policy: VersionPolicy, available: Collection[int]) -> VersionChoice:
    """The versions that the policy wants of those that are there."""
    present = sorted(set(available))
    if policy.kind == "all":
        return VersionChoice(tuple(present))
    if policy.kind == "latest":
        return VersionChoice(tuple(present[-policy.num_versions :]))
    listed = sorted(set(policy.versions))
    warnings = tuple(
        f"version_policy lists version {version}, which is not in the repository; there is "
        f"{', '.join(map(str, present)) or 'none'}"
        for version in listed
        if version not in present
    )
    return VersionChoice(tuple(version for version in listed if version in present), warnings)
