"""Counts of one model version, and the same as Prometheus text."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from oip.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, Unavailable
from oip.server.extensions import BatchStatistics, Duration
from torchscript_predictor.metrics import VersionFigures, exposition
from torchscript_predictor.statistics import FailureReason, Histogram, Recorder, failure_reason


@pytest.fixture
def recorder():
    recorder = Recorder("m", "2")
    recorder.execution(3, gather=0.001, infer=0.02, scatter=0.002)
    recorder.execution(1, gather=0.001, infer=0.01, scatter=0.002)
    recorder.execution(3, gather=0.003, infer=0.02, scatter=0.002)
    for rows, request in ((1, 0.05), (2, 0.06), (3, 3.0)):
        recorder.success(rows, 1700000000.5, request, queue=0.01, gather=0.001, compute=0.025, scatter=0.002)
    recorder.failure(Unavailable("full"), 0.001)
    recorder.failure(Internal("boom"), 0.002)
    recorder.failure(Internal("boom"), 0.002)
    return recorder


def rounded(duration):
    return duration.count, round(duration.nanoseconds / 1e6)


def test_the_snapshot(recorder):
    found = recorder.snapshot()
    assert (found.name, found.version) == ("m", "2")
    assert found.last_inference_milliseconds == 1700000000500
    assert (found.inference_count, found.execution_count) == (6, 3)
    assert rounded(found.inference.success) == (3, 3110)
    assert rounded(found.inference.fail) == (3, 5)
    assert rounded(found.inference.queue) == (3, 30)
    assert rounded(found.inference.compute_input) == (3, 3)
    assert rounded(found.inference.compute_infer) == (3, 66)
    assert rounded(found.inference.compute_output) == (3, 6)
    assert found.inference.cache_hit == Duration()
    assert [batch.batch_size for batch in found.batches] == [1, 3]
    assert found.batches[1] == BatchStatistics(
        3, Duration(2, 4_000_000), Duration(2, 40_000_000), Duration(2, 4_000_000)
    )


def test_the_metrics_say_what_the_statistics_say(recorder):
    other = Recorder("n", "1")
    text = exposition([VersionFigures(recorder, 4, 1.5), VersionFigures(other, 0, 0.25)])
    samples = {
        (sample.name.removesuffix("_total"), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    labels = (("model", "m"), ("version", "2"))
    found = recorder.snapshot()
    for name, value in {
        "nv_inference_request_success": 3,
        "nv_inference_count": 6,
        "nv_inference_exec_count": 3,
        "nv_inference_request_duration_us": found.inference.success.nanoseconds // 1000,
        "nv_inference_queue_duration_us": found.inference.queue.nanoseconds // 1000,
        "nv_inference_compute_input_duration_us": found.inference.compute_input.nanoseconds // 1000,
        "nv_inference_compute_infer_duration_us": found.inference.compute_infer.nanoseconds // 1000,
        "nv_inference_compute_output_duration_us": found.inference.compute_output.nanoseconds // 1000,
        "nv_inference_pending_request_count": 4,
        "nv_model_load_duration_secs": 1.5,
        "tandem_inference_request_seconds_count": 3,
        "tandem_inference_queue_seconds_count": 3,
        "tandem_inference_compute_seconds_count": 3,
        "tandem_inference_batch_size_count": 3,
        "tandem_inference_batch_size_sum": 7,
    }.items():
        assert samples[name, *labels] == value, name
        assert f"\n{name}{{" in text, "Triton's counters have no suffix"
    for reason, count in {"REJECTED": 1, "CANCELED": 0, "BACKEND": 2, "OTHER": 0}.items():
        assert samples["nv_inference_request_failure", labels[0], ("reason", reason), labels[1]] == count
        assert samples["nv_inference_request_failure", ("model", "n"), ("reason", reason), ("version", "1")] == 0
    bucket = "tandem_inference_batch_size_bucket"
    assert [samples[bucket, ("le", le), *labels] for le in ("1", "2", "4", "+Inf")] == [1, 1, 3, 3]
    assert samples["tandem_inference_request_seconds_bucket", ("le", "2.5"), *labels] == 2
    assert text.count("# TYPE nv_inference_count counter") == 1


def test_no_version_no_series():
    assert exposition([]) == ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable("full"), FailureReason.REJECTED),
        (DeadlineExceeded("late"), FailureReason.CANCELED),
        (Cancelled("gone"), FailureReason.CANCELED),
        (asyncio.CancelledError(), FailureReason.CANCELED),
        (Internal("boom"), FailureReason.BACKEND),
        (MemoryError(), FailureReason.BACKEND),
        (InvalidArgument("no"), FailureReason.OTHER),
    ],
)
def test_why_a_request_failed(error, reason):
    assert failure_reason(error) is reason


def test_a_bound_belongs_to_its_bucket():
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 2, 3):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 2, 1], 8)
