"""The part of `config.pbtxt` that says how requests wait and are merged."""

import pytest

from torchscript_predictor.config_json import config_json
from torchscript_predictor.model_config import ConfigError, parse_model_config
from torchscript_predictor.scheduling.policy import DynamicBatching, QueuePolicy, TimeoutAction


@pytest.fixture
def parse(config_text):
    def parse(batching, max_batch_size=8):
        return parse_model_config(config_text(max_batch_size=max_batch_size, more=batching), "m")

    return parse


def test_absent(parse):
    config = parse("")
    assert config.dynamic_batching is None
    assert "dynamic_batching" not in config_json(config.message)


def test_defaults(parse):
    config = parse("dynamic_batching { }")
    assert config.dynamic_batching == DynamicBatching(preferred_batch_size=(8,))
    assert config_json(config.message)["dynamic_batching"]["preferred_batch_size"] == [8]
    assert config.warnings == ()


def test_everything(parse):
    config = parse("""
        dynamic_batching {
          preferred_batch_size: [ 4, 8 ]
          max_queue_delay_microseconds: 100
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy { max_queue_size: 7 }
          priority_queue_policy { key: 1 value { timeout_action: DELAY default_timeout_microseconds: 50
                                                 allow_timeout_override: true } }
        }""")
    assert config.dynamic_batching == DynamicBatching(
        preferred_batch_size=(4, 8),
        max_queue_delay_microseconds=100,
        default_priority_level=2,
        queue_policies=(
            QueuePolicy(TimeoutAction.DELAY, 50, allow_timeout_override=True),
            QueuePolicy(max_queue_size=7),
            QueuePolicy(max_queue_size=7),
        ),
    )
    assert config.warnings == ()


def test_one_level_without_priorities(parse):
    config = parse("dynamic_batching { preserve_ordering: true default_queue_policy { max_queue_size: 3 } }")
    assert config.dynamic_batching == DynamicBatching(
        preferred_batch_size=(8,), preserve_ordering=True, queue_policies=(QueuePolicy(max_queue_size=3),)
    )


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ("preferred_batch_size: 0", "dynamic batching preferred size must be positive, got 0"),
        ("preferred_batch_size: [ 4, 9 ]", "dynamic batching preferred size must be <= max batch size (8), got 9"),
        ("priority_levels: 2", "default priority level must be in range [1, 2], got 0"),
        ("priority_levels: 2 default_priority_level: 3", "default priority level must be in range [1, 2], got 3"),
        (
            "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } }",
            "priority queue policy must have priority level in range [1, 2], got 3",
        ),
        ("priority_levels: 5000 default_priority_level: 1", "priority_levels is 5000; at most 1000 are allowed"),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "only one priority level is allowed when 'preserve_ordering' is true, priority_levels is 2",
        ),
        (
            "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 }",
            "default_queue_policy can not have DELAY as timeout action when 'preserve_ordering' is true",
        ),
        (
            "preserve_ordering: true priority_levels: 1 default_priority_level: 1 priority_queue_policy { key: 1 "
            "value { timeout_action: DELAY allow_timeout_override: true } }",
            "priority_queue_policy of level 1 can not have DELAY as timeout action",
        ),
        ("max_queue_delay_microseconds: 18446744073709551615", "it must be at most 1000000000000"),
        (
            "default_queue_policy { default_timeout_microseconds: 18446744073709551615 }",
            "default_queue_policy: default_timeout_microseconds is 18446744073709551615; it must be at most",
        ),
    ],
)
def test_broken_rules(parse, batching, message):
    with pytest.raises(ConfigError) as caught:
        parse("\n\ndynamic_batching { " + batching + " }")
    assert message in str(caught.value)
    assert str(caught.value).startswith("m/config.pbtxt:7: ")


def test_delay_without_a_timeout_never_acts_and_may_keep_the_order(parse):
    parse("dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY } }")


@pytest.mark.parametrize(
    ("batching", "max_batch_size", "warning"),
    [
        ("max_queue_delay_microseconds: 5", 0, "max_batch_size is 0, so requests are not merged"),
        ("preferred_batch_size: 1", 1, "max_batch_size is 1, so requests are not merged"),
        ("default_priority_level: 1", 4, "default_priority_level has no effect: priority_levels is not set"),
        ("priority_queue_policy { key: 1 value { } }", 4, "priority_queue_policy has no effect"),
        (
            "max_queue_delay_microseconds: 9 default_queue_policy { default_timeout_microseconds: 9 }",
            4,
            "a request that waits for company is rejected",
        ),
    ],
)
def test_warnings(parse, batching, max_batch_size, warning):
    [found] = parse(f"dynamic_batching {{ {batching} }}", max_batch_size).warnings
    assert warning in found
