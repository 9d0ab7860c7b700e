"""Which versions are served."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchscript_predictor.version_policy import VersionPolicy, choose_versions


@pytest.mark.parametrize(
    ("policy", "available", "chosen"),
    [
        (VersionPolicy(), [1, 2, 10], (10,)),
        (VersionPolicy("latest", num_versions=2), [3, 1, 2], (2, 3)),
        (VersionPolicy("latest", num_versions=9), [1, 2], (1, 2)),
        (VersionPolicy("latest"), [], ()),
        (VersionPolicy("all"), [3, 1], (1, 3)),
        (VersionPolicy("specific", versions=(1,)), [1, 2], (1,)),
        (VersionPolicy("specific", versions=(2, 1, 2)), [1, 2, 3], (1, 2)),
    ],
)
def test_choose_versions(policy, available, chosen):
    choice = choose_versions(policy, available)
    assert choice.versions == chosen
    assert not choice.warnings


def test_a_listed_version_that_is_missing_is_warned_about():
    choice = choose_versions(VersionPolicy("specific", versions=(1, 4)), [1, 2])
    assert choice.versions == (1,)
    assert choice.warnings == ("version_policy lists version 4, which is not in the repository; there is 1, 2",)


@given(st.sets(st.integers(1, 99)), st.integers(1, 9))
def test_latest_gives_the_greatest(available, count):
    chosen = choose_versions(VersionPolicy("latest", num_versions=count), available).versions
    assert len(chosen) == min(count, len(available))
    assert all(version in chosen for version in available if any(version > other for other in chosen))
