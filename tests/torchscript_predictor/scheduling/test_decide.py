"""What is executed together, when and never: tables, and what must hold for every queue."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchscript_predictor.scheduling.decide import LOOK_AHEAD, BatchRules, Refusal, decide, places
from torchscript_predictor.scheduling.policy import TimeoutAction


@dataclass(eq=False)
class Waiting:
    """`name` is what the tables say; the rest is what a decision reads."""

    name: str = ""
    rows: int = 1
    shape: str = "A"
    arrived: float = 0.0
    deadline: float | None = None
    timeout_at: float | None = None
    gone: bool = False


@dataclass
class Level:
    waiting: list[Waiting] = field(default_factory=list)
    delayed: list[Waiting] = field(default_factory=list)
    timeout_action: TimeoutAction = TimeoutAction.REJECT


def queue(text, **more):
    """One level out of words such as "a2" (name a, 2 rows), "bB" (another shape), "c1@5" (arrived at 5)."""
    entries = []
    for word in text.split():
        word, _, arrived = word.partition("@")
        rows = "".join(filter(str.isdecimal, word))
        shape = "".join(filter(str.isupper, word))
        entries.append(Waiting(word[0], int(rows or 1), shape or "A", float(arrived or 0)))
    return Level(entries, **more)


def names(entries):
    return "".join(entry.name for entry in entries)


ALONE = BatchRules()
FOUR = BatchRules(max_batch_size=4)
ORDERED = BatchRules(max_batch_size=4, keep_order=True)
LATER = BatchRules(max_batch_size=4, delay_seconds=10.0)
PREFERRED = BatchRules(max_batch_size=8, preferred=frozenset({2, 4}))
PREFERRED_LATER = BatchRules(max_batch_size=8, preferred=frozenset({2, 4}), delay_seconds=10.0)
ORDERED_LATER = BatchRules(max_batch_size=4, delay_seconds=10.0, keep_order=True)


@pytest.mark.parametrize(
    ("rules", "waiting", "free", "batches"),
    [
        # nothing is merged without dynamic batching, whatever the rows
        (ALONE, "", 2, []),
        (ALONE, "a b c", 1, ["a"]),
        (ALONE, "a3 b c", 2, ["a", "b"]),
        (ALONE, "a b", 3, ["a", "b"]),
        (FOUR, "a b", 0, []),
        # without a delay whatever waits is taken, up to the maximum, which counts rows
        (FOUR, "a", 1, ["a"]),
        (FOUR, "a b c", 1, ["abc"]),
        (FOUR, "a b c d e f", 1, ["abcd"]),
        (FOUR, "a b c d e f", 2, ["abcd", "ef"]),
        (FOUR, "a2 b2 c", 1, ["ab"]),
        (FOUR, "a3 b2 c", 1, ["a"]),  # c does not overtake b, which is like it
        (FOUR, "a3 b2 c", 2, ["a", "bc"]),
        (FOUR, "a4 b4", 2, ["a", "b"]),
        (FOUR, "a0 b0 c0 d0 e0", 1, ["abcd"]),  # a request without rows takes a place
        # others are passed over for mates of the same shape, and come next
        (FOUR, "a bB c dB", 1, ["ac"]),
        (FOUR, "a bB c dB", 2, ["ac", "bd"]),
        (FOUR, "aA bB cC", 2, ["a", "b"]),
        # ... unless the order has to be kept
        (ORDERED, "a bB c dB", 1, ["a"]),
        (ORDERED, "a b cB d", 3, ["ab", "c", "d"]),
        (ORDERED, "a bB c dB", 4, ["a", "b", "c", "d"]),
        (ORDERED, "a3 b2 c", 1, ["a"]),
        # the largest preferred size that the queue reaches is sent, the rest is for the next
        (PREFERRED, "a b c", 1, ["ab"]),
        (PREFERRED, "a b c d e", 1, ["abcd"]),
        (PREFERRED, "a", 1, ["a"]),
        (PREFERRED, "a3", 1, ["a"]),
        (PREFERRED, "a3 b3", 1, ["ab"]),  # none can be made: as large as it gets
        (PREFERRED, "a3 b c3 d4", 2, ["ab"]),  # d may not overtake c
    ],
)
def test_what_is_executed_now(rules, waiting, free, batches):
    decision = decide([queue(waiting)], free, rules, 0.0)
    assert [names(batch) for batch in decision.batches] == batches
    assert decision.refused == decision.delayed == []
    assert decision.look_again_at is None


@pytest.mark.parametrize(
    ("rules", "waiting", "now", "batches", "look_again_at"),
    [
        (LATER, "a@3 b@4", 12.0, [], 13.0),
        (LATER, "a@3 b@4", 13.0, ["ab"], None),
        (LATER, "a@3 b@4 c@5 d@6", 7.0, ["abcd"], None),  # full
        (LATER, "a3@3 b2@4", 7.0, ["a"], None),  # nothing more fits
        (LATER, "a@3 bB@4 c@5", 7.0, [], 13.0),
        (LATER, "a@3 bB@4 cB4@5", 7.0, ["b"], 13.0),  # b cannot grow, a can
        (LATER, "a@3 b4B@4", 7.0, ["b"], 13.0),
        (LATER, "a@3 bB@4 c@5", 13.0, ["ac"], None),
        (ORDERED_LATER, "a@3 bB@4", 7.0, ["a"], None),  # nothing may pass b to join a
        (ORDERED_LATER, "a@3 b@4", 7.0, [], 13.0),
        (PREFERRED_LATER, "a@3", 7.0, [], 13.0),
        (PREFERRED_LATER, "a@3 b@4", 7.0, ["ab"], None),
        (PREFERRED_LATER, "a@3 b@4 c@5", 7.0, ["ab"], None),
        (PREFERRED_LATER, "a@3 b@4 c@5", 13.0, ["abc"], None),  # late: all that waits
        (PREFERRED_LATER, "a3@3", 7.0, [], 13.0),  # one more row would make four
        (PREFERRED_LATER, "a5@3", 7.0, ["a"], None),  # no preferred size can be made any more
    ],
)
def test_what_waits_for_company(rules, waiting, now, batches, look_again_at):
    decision = decide([queue(waiting)], 1, rules, now)
    assert [names(batch) for batch in decision.batches] == batches
    assert decision.look_again_at == look_again_at


def test_the_oldest_counts_even_behind_a_higher_priority():
    decision = decide([queue("a@9"), queue("b@0")], 1, LATER, 10.0)
    assert [names(batch) for batch in decision.batches] == ["ab"]


def test_priorities_come_in_order_and_share_a_batch():
    levels = [queue(""), queue("c d e"), queue("f g")]
    assert names(decide(levels, 1, FOUR, 0.0).batches[0]) == "cdef"
    assert names(decide(levels, 1, ALONE, 0.0).batches[0]) == "c"


def test_who_has_gone_or_is_late_is_never_executed():
    level = queue("a b c d e")
    a, b, c, _, _ = level.waiting
    a.gone = True
    b.deadline = 5.0
    c.timeout_at = 5.0
    decision = decide([level], 1, FOUR, 5.0)
    assert names(decision.batches[0]) == "de"
    assert decision.refused == [(a, Refusal.GONE), (b, Refusal.DEADLINE), (c, Refusal.TIMEOUT)]
    assert names(decide([level], 1, FOUR, 4.9).batches[0]) == "bcde"


def test_delayed_ones_come_after_the_others_of_their_level():
    first = queue("a b c", timeout_action=TimeoutAction.DELAY)
    first.delayed = queue("d e").waiting
    first.waiting[0].timeout_at = 5.0
    first.delayed[0].deadline = 5.0
    first.delayed[1].timeout_at = 1.0  # has had its effect
    decision = decide([first, queue("f")], 1, BatchRules(max_batch_size=8), 5.0)
    assert names(decision.batches[0]) == "bceaf"
    assert decision.delayed == [first.waiting[0]]
    assert decision.refused == [(first.delayed[0], Refusal.DEADLINE)]


def test_the_search_for_mates_is_bounded():
    far = [Waiting(shape="B", name="b") for _ in range(LOOK_AHEAD + 4)]
    level = Level([Waiting("a"), *far, Waiting("z")])
    assert names(decide([level], 1, FOUR, 0.0).batches[0]) == "a"
    del level.waiting[5:-1]
    assert names(decide([level], 1, FOUR, 0.0).batches[0]) == "az"


# What must hold for every queue

times = st.one_of(st.none(), st.integers(0, 20).map(float))
entries = st.builds(
    Waiting,
    rows=st.integers(0, 6),
    shape=st.sampled_from("AB"),
    arrived=st.integers(0, 10).map(float),
    deadline=times,
    timeout_at=times,
    gone=st.booleans(),
)
in_order = st.lists(entries, max_size=12).map(lambda each: sorted(each, key=lambda entry: entry.arrived))
levels = st.lists(
    st.builds(Level, waiting=in_order, delayed=in_order, timeout_action=st.sampled_from(TimeoutAction)),
    min_size=1,
    max_size=3,
)
rules = st.builds(
    BatchRules,
    max_batch_size=st.integers(6, 12),
    preferred=st.frozensets(st.integers(1, 6), max_size=2),
    delay_seconds=st.sampled_from([0.0, 3.0]),
    keep_order=st.booleans(),
)


def dead(entry, now):
    return entry.gone or (entry.deadline is not None and now >= entry.deadline)


def timed_out(entry, now):
    return entry.timeout_at is not None and now >= entry.timeout_at


def order(levels, now):
    """Who may be executed, in order: written as the rule says it, not as `decide` does it."""
    for level in levels:
        late = [entry for entry in level.waiting if timed_out(entry, now)]
        yield from (entry for entry in level.waiting if entry not in late and not dead(entry, now))
        behind = level.delayed + (late if level.timeout_action is TimeoutAction.DELAY else [])
        yield from (entry for entry in behind if not dead(entry, now))


@given(levels, st.integers(0, 3), rules, st.integers(10, 20).map(float))
def test_whatever_waits(levels, free, rules, now):
    decision = decide(levels, free, rules, now)
    alive = list(order(levels, now))
    sent = [entry for batch in decision.batches for entry in batch]
    assert len(decision.batches) <= free
    for batch in decision.batches:
        assert batch
        assert sum(places(entry.rows) for entry in batch) <= rules.max_batch_size
        assert len({entry.shape for entry in batch}) == 1
        assert batch == sorted(batch, key=alive.index)
    assert len({id(entry) for entry in sent}) == len(sent)
    assert all(entry in alive for entry in sent)
    refused = [entry for entry, _ in decision.refused]
    assert not [entry for entry in refused if entry in alive]
    assert all(timed_out(entry, now) for entry in decision.delayed)
    for shape in "AB":  # none overtakes its like
        mine = [entry for entry in sent if entry.shape == shape]
        assert mine == [entry for entry in alive if entry.shape == shape][: len(mine)]
    if rules.keep_order:
        assert sent == alive[: len(sent)]
    if free and alive:
        if not rules.delay_seconds:
            assert decision.batches[0][0] is alive[0]
        elif not decision.batches:
            assert now < decision.look_again_at <= min(entry.arrived for entry in alive) + rules.delay_seconds


@given(levels, rules, st.integers(10, 20).map(float))
def test_everything_ends_if_the_decisions_are_carried_out(levels, rules, now):
    """Nobody starves: a queue that nobody joins is emptied, each entry executed or refused once."""
    everyone = [entry for level in levels for entry in (*level.waiting, *level.delayed)]
    expected = len(list(order(levels, now)))
    executed, ended = [], 0
    for _ in range(len(everyone) + 2):
        decision = decide(levels, 1, rules, now)
        for level in levels:
            for entry in [entry for entry in level.waiting if entry in decision.delayed]:
                level.waiting.remove(entry)
                level.delayed.append(entry)
        done = [entry for batch in decision.batches for entry in batch]
        executed += done
        for entry in [*done, *(entry for entry, _ in decision.refused)]:
            level = next(level for level in levels if entry in (*level.waiting, *level.delayed))
            (level.waiting if entry in level.waiting else level.delayed).remove(entry)
            ended += 1
        if not decision.batches and decision.look_again_at is not None:
            rules = BatchRules(rules.max_batch_size, rules.preferred, 0.0, rules.keep_order)  # the delay passes
    assert ended == len(everyone)
    assert len(executed) == expected
