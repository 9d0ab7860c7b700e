"""What models execute before they are ready, over a model that records its inputs."""

import logging

import numpy as np
import pytest

from oip.errors import Internal, InvalidArgument
from torchscript_predictor import warmup
from torchscript_predictor.backends import LoadError
from torchscript_predictor.model_config import parse_model_config
from torchscript_predictor.repository import RepositoryError
from torchscript_predictor.warmup import sample_inputs, settled, threads_that_pay, warm_up

OUTPUT = 'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'


class FakeModel:
    warnings = ()

    def __init__(self, fails=lambda inputs: None):
        self.executed = []
        self._fails = fails

    def enter_thread(self, intra_op_threads):
        raise AssertionError("warm-up runs on a thread that is prepared already")

    def execute(self, inputs):
        self.executed.append(inputs)
        error = self._fails(inputs)
        if error:
            raise error
        return {}

    def shapes(self):
        return [inputs["x"].shape for inputs in self.executed]


def still():
    """A clock that stands: every run is as fast as the one before."""
    return 0.0


def config(text, max_batch_size=0):
    return parse_model_config(f"max_batch_size: {max_batch_size}\n{OUTPUT}{text}", "m")


def x(dims, data_type="TYPE_FP32", extra=""):
    return f'input {{ name: "x" data_type: {data_type} dims: {dims} {extra} }}\n'


def no_file(name):
    raise RepositoryError(f"m/warmup/{name} does not exist")


def test_automatic_warm_up_runs_zeros_at_1_and_at_the_largest_batch():
    model = FakeModel()
    warm_up(model, config(x("[ 2, -1 ]"), max_batch_size=4), no_file, still)
    assert model.shapes() == [(1, 2, 1)] * 3 + [(4, 2, 1)] * 3
    assert not any(inputs["x"].any() for inputs in model.executed)
    assert model.executed[0]["x"].dtype == np.float32


def test_preferred_batch_sizes_are_warmed_up_too(caplog):
    model = FakeModel(lambda inputs: Internal("not three") if len(inputs["x"]) == 3 else None)
    text = x("[ 2 ]") + "dynamic_batching { preferred_batch_size: [ 3, 2 ] }"
    warm_up(model, config(text, max_batch_size=4), no_file, still)
    assert model.shapes() == [(1, 2)] * 3 + [(2, 2)] * 3 + [(3, 2)] + [(4, 2)] * 3
    assert "model m fails at preferred_batch_size 3: not three" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "enough"),
    [
        ([], False),
        ([1.0, 1.0], False),  # the profiling executor has not optimised yet
        ([9.0, 8.0, 1.0], False),
        ([9.0, 8.0, 1.0, 0.9], True),
        ([1.0, 1.0, 1.0], True),
        ([1.0, 1.0, 1.5], False),
        ([1.0, 2.0] * 5, True),  # a busy machine never settles
    ],
)
def test_when_timings_have_settled(seconds, enough):
    assert settled(seconds) is enough


def test_a_model_is_run_until_its_timings_settle():
    seconds = iter([10.0, 5.0, 1.0, 1.1, 99.0])
    now = [0.0]
    model = FakeModel(lambda inputs: now.__setitem__(0, now[0] + next(seconds)))
    warm_up(model, config(x("[ 2 ]")), no_file, lambda: now[0])
    assert len(model.executed) == 4


def test_without_batching_there_is_one_shape():
    model = FakeModel()
    warm_up(model, config(x("[ 2 ]")), no_file, still)
    assert model.shapes() == [(2,)] * 3


def test_a_slow_model_is_not_run_at_the_largest_batch(monkeypatch):
    monkeypatch.setattr(warmup, "MAX_AUTOMATIC_SECONDS", -1.0)
    model = FakeModel()
    warm_up(model, config(x("[ 2 ]"), max_batch_size=64), no_file, still)
    assert model.shapes() == [(1, 2)] * 3


def test_variable_dimensions_are_tried_as_a_picture_s():
    model = FakeModel(lambda inputs: Internal("too small") if inputs["x"].shape[-1] < 3 else None)
    warm_up(model, config(x("[ 3, -1, -1 ]"), max_batch_size=1), no_file, still)
    assert model.shapes() == [(1, 3, 1, 1)] + [(1, 3, 224, 224)] * 3


def test_strings_are_empty():
    model = FakeModel()
    warm_up(model, config(x("[ 1 ]", "TYPE_STRING", "reshape { shape: [] }"), max_batch_size=2), no_file, still)
    assert model.executed[0]["x"].tolist() == [[b""]]


@pytest.mark.parametrize(
    ("dims", "error", "words"),
    [
        ("[ 2 ]", Internal("no zeros please"), "is skipped (no zeros please)"),
        ("[ 100000, 100000 ]", None, "is skipped (inputs too large)"),
        ("[ 2 ]", InvalidArgument("configuration expects datatype"), "every request will fail: configuration expects"),
    ],
)
def test_automatic_warm_up_that_fails_is_logged_and_skipped(dims, error, words, caplog):
    caplog.set_level(logging.INFO)
    warm_up(FakeModel(lambda inputs: error), config(x(dims)), no_file, still)
    assert words in caplog.text


def test_a_model_that_fails_at_its_largest_batch_is_warned_about(caplog):
    model = FakeModel(lambda inputs: Internal("one at a time") if len(inputs["x"]) > 1 else None)
    warm_up(model, config(x("[ 2 ]"), max_batch_size=2), no_file, still)
    assert "model m fails at max_batch_size 2: one at a time" in caplog.text


def sample(entry, batch_size=1, count=0):
    return (
        f'model_warmup {{ name: "w" batch_size: {batch_size} count: {count} '
        f'inputs {{ key: "x" value: {{ {entry} }} }} }}\n'
    )


def test_samples_run_as_often_as_they_say_instead_of_zeros():
    model = FakeModel()
    text = sample("data_type: TYPE_FP32 dims: 2 random_data: true", batch_size=3, count=2)
    warm_up(model, config(x("[ 2 ]") + text, max_batch_size=4), no_file, still)
    assert model.shapes() == [(3, 2)] * 2
    assert model.executed[0]["x"].any()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Internal("PyTorch execute failure: no"), "PyTorch execute failure: no"), (MemoryError(), "MemoryError")],
)
def test_a_failing_sample_fails_the_load(error, reason):
    text = sample("data_type: TYPE_FP32 dims: 2 zero_data: true")
    with pytest.raises(LoadError) as caught:
        warm_up(FakeModel(lambda inputs: error), config(x("[ 2 ]") + text), no_file, still)
    assert str(caught.value) == f"failed to run warmup sample 'w': {reason}"


@pytest.mark.parametrize(
    ("data_type", "content", "expected"),
    [
        ("TYPE_FP32", np.array([1.5, -2], "<f4").tobytes(), [1.5, -2.0]),
        ("TYPE_BOOL", b"\x01\x00", [True, False]),
        ("TYPE_BF16", b"\x80\x3f\x00\x40", [0x3F80, 0x4000]),
        ("TYPE_STRING", b"\x01\x00\x00\x00a\x00\x00\x00\x00", [b"a", b""]),
    ],
)
def test_sample_files_hold_elements_as_on_the_wire(tmp_path, data_type, content, expected):
    (tmp_path / "in.bin").write_bytes(content)
    settings = config(x("[ 2 ]", data_type) + sample(f'data_type: {data_type} dims: 2 input_data_file: "in.bin"'))
    inputs = sample_inputs(settings.warmup[0], settings, tmp_path.joinpath)
    assert inputs["x"].tolist() == expected


@pytest.mark.parametrize(
    ("data_type", "content"),
    [
        ("TYPE_FP32", b"1234567"),
        ("TYPE_STRING", b"\x01\x00\x00\x00a"),
        ("TYPE_STRING", b"\x01\x00\x00\x00a\xff\xff\xff\xffb"),
        ("TYPE_STRING", b"\x01\x00\x00\x00a\x00\x00"),
    ],
)
def test_a_sample_file_of_the_wrong_size_fails_the_load(tmp_path, data_type, content):
    (tmp_path / "in.bin").write_bytes(content)
    settings = config(x("[ 2 ]", data_type) + sample(f'data_type: {data_type} dims: 2 input_data_file: "in.bin"'))
    with pytest.raises(LoadError, match=r"^failed to run warmup sample 'w': file in\.bin "):
        warm_up(FakeModel(), settings, tmp_path.joinpath)


def test_a_sample_file_that_is_missing_fails_the_load():
    settings = config(x("[ 2 ]") + sample('data_type: TYPE_FP32 dims: 2 input_data_file: "in.bin"'))
    with pytest.raises(LoadError, match=r"^failed to run warmup sample 'w': m/warmup/in\.bin does not exist"):
        warm_up(FakeModel(), settings, no_file)


@pytest.mark.parametrize("data_type", ["TYPE_BOOL", "TYPE_INT8", "TYPE_UINT64", "TYPE_FP16", "TYPE_FP64", "TYPE_BF16"])
def test_random_data_is_of_the_datatype_and_in_range(data_type):
    settings = config(x("[ 99 ]", data_type) + sample(f"data_type: {data_type} dims: 99 random_data: true"))
    array = sample_inputs(settings.warmup[0], settings, no_file)["x"]
    values = (array.astype(np.uint32) << 16).view(np.float32) if data_type == "TYPE_BF16" else array.astype(float)
    assert array.shape == (99,)
    assert len(set(values.tolist())) > 1
    assert all(0 <= value <= 127 for value in values)


class ThreadedModel:
    """A model whose execution takes so many seconds of a manual clock with one thread, and so many with more."""

    warnings = ()

    def __init__(self, seconds_with_one, seconds_with_several, error=None):
        self.now = 0.0
        self.threads = None
        self._seconds = seconds_with_one, seconds_with_several
        self._error = error

    def enter_thread(self, intra_op_threads):
        self.threads = intra_op_threads

    def execute(self, inputs):
        if self._error:
            raise self._error
        self.now += self._seconds[0 if self.threads == 1 else 1]
        return {}


@pytest.mark.parametrize(
    ("with_one", "with_four", "chosen"),
    [
        (0.020, 0.011, 4),  # nearly twice as fast
        (0.020, 0.016, 4),  # just worth it
        (0.020, 0.017, 1),
        (0.0001, 0.0003, 1),  # a small network is slower on several
        (0.4, 0.4, 4),  # too slow to try: left as it is
    ],
)
def test_threads_that_do_not_pay_are_given_back(with_one, with_four, chosen):
    model = ThreadedModel(with_one, with_four)
    assert threads_that_pay(model, config(x("[ 2 ]")), 4, clock=lambda: model.now) == chosen


def test_a_model_that_cannot_be_tried_keeps_its_threads():
    model = ThreadedModel(0.1, 0.1, error=Internal("no"))
    assert threads_that_pay(model, config(x("[ 2 ]")), 4, clock=lambda: model.now) == 4
