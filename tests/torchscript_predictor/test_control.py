"""What a load, a reload and a look at the repository lead to, as tables."""

import pytest

from torchscript_predictor.control import (
    Outcome,
    PollPlan,
    Source,
    control_refusal,
    needs_load,
    outcome,
    poll_plan,
    seconds_to_next_look,
)

A, B = frozenset({("1/model.pt", 1, 1, 1)}), frozenset({("1/model.pt", 2, 1, 2)})


@pytest.mark.parametrize(
    ("failed", "serves", "what"),
    [
        (0, False, Outcome.REPLACE),
        (0, True, Outcome.REPLACE),
        (1, True, Outcome.KEEP),
        (1, False, Outcome.REPLACE),
    ],
)
def test_a_reload_replaces_or_keeps(failed, serves, what):
    assert outcome(failed, serves=serves) is what


@pytest.mark.parametrize(
    ("serving", "found", "needed"),
    [
        (None, Source(A), True),
        (Source(A), Source(A), False),
        (Source(A), Source(B), True),
        (Source(A), Source(A, override=1), True),
        (Source(A, override=1), Source(A, override=1), False),
        (Source(A, override=1), Source(A), True),
    ],
)
def test_a_load_with_nothing_new_does_nothing(serving, found, needed):
    assert needs_load(serving, found) is needed


@pytest.mark.parametrize(
    ("acted", "before", "now", "plan"),
    [
        ({}, {}, {}, PollPlan()),
        ({"m": A}, {"m": A}, {"m": A}, PollPlan()),
        ({"m": A}, {"m": A}, {"m": B}, PollPlan(unsettled=("m",))),
        ({"m": A}, {"m": B}, {"m": B}, PollPlan(load=("m",))),
        ({"m": A}, {"m": B}, {"m": A}, PollPlan()),  # changed and changed back
        ({}, {}, {"n": A}, PollPlan(unsettled=("n",))),
        ({}, {"n": A}, {"n": A}, PollPlan(load=("n",))),
        ({"m": A}, {"m": A}, {}, PollPlan(unsettled=("m",))),
        ({"m": A}, {}, {}, PollPlan(unload=("m",))),
        (
            {"a": A, "b": A, "c": A},
            {"a": A, "b": B, "d": A},
            {"a": A, "b": B, "d": B},
            PollPlan(load=("b",), unload=("c",), unsettled=("d",)),
        ),
    ],
)
def test_a_change_counts_once_two_looks_agree(acted, before, now, plan):
    assert poll_plan(acted, before, now) == plan


@pytest.mark.parametrize(
    ("plan", "interval", "seconds"),
    [
        (PollPlan(), 15, 15),
        (PollPlan(load=("m",)), 15, 15),
        (PollPlan(unsettled=("m",)), 15, 1),
        (PollPlan(unsettled=("m",)), 0.5, 0.5),
    ],
)
def test_the_next_look_is_soon_while_something_changes(plan, interval, seconds):
    assert seconds_to_next_look(plan, interval) == seconds


def test_clients_control_models_in_mode_explicit_alone():
    assert control_refusal("explicit") is None
    for mode in ("none", "poll"):
        assert control_refusal(mode).startswith("explicit model load / unload is not allowed ")
