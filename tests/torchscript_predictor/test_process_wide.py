"""Settings of which a process has one."""

import pytest
import torch

from torchscript_predictor.backends.process_wide import ProcessWide


def test_the_first_model_that_asks_gets_it_and_the_others_are_told():
    seen = []
    process = ProcessWide({"A": lambda value: seen.append(("A", value)), "B": lambda value: seen.append(("B", value))})
    assert process.apply("one", [("A", True), ("B", 2)]) == [
        "model 'one': parameter A (true) is process-wide in torch: it now holds for every model of this process",
        "model 'one': parameter B (2) is process-wide in torch: it now holds for every model of this process",
    ]
    assert process.apply("two", [("A", True)]) == []
    assert process.apply("three", [("A", False)]) == [
        "model 'three': parameter A (false) has no effect: it is process-wide, and model 'one' has set true"
    ]
    assert seen == [("A", True), ("B", 2)]


def test_what_torch_refuses_is_said():
    def refuse(value):
        raise RuntimeError("cannot set number of interop threads after parallel work has started")

    process = ProcessWide({"INTER_OP_THREAD_COUNT": refuse})
    [warning] = process.apply("m", [("INTER_OP_THREAD_COUNT", 2)])
    assert "torch cannot change it once it has computed" in warning


@pytest.mark.parametrize(
    ("key", "read", "restore"),
    [
        ("ENABLE_TENSOR_FUSER", torch._C._jit_texpr_fuser_enabled, torch._C._jit_set_texpr_fuser_enabled),
        ("DISABLE_CUDNN", lambda: not torch.backends.cudnn.enabled, None),
    ],
)
def test_the_setters_are_torch_s(key, read, restore):
    before = read()
    process = ProcessWide()
    try:
        process.apply("m", [(key, not before)])
        assert read() is (not before)
    finally:
        if restore:
            restore(before)
        else:
            torch.backends.cudnn.enabled = not before


@pytest.mark.parametrize("key", ["ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING"])
def test_the_executor_s_setters_are_torch_s(key):
    setter = {
        "ENABLE_JIT_EXECUTOR": torch._C._jit_set_profiling_executor,
        "ENABLE_JIT_PROFILING": torch._C._jit_set_profiling_mode,
    }[key]
    before = setter(True)  # these return what was set
    try:
        ProcessWide().apply("m", [(key, False)])
        assert setter(True) is False
    finally:
        setter(before)
