"""The statistics of every model version as Prometheus text: Triton's `nv_*` names, and histograms of our own.

Knows the text format and no model.  Written by hand because prometheus_client would append `_total` to Triton's
counters, which nobody's dashboards know.

Source: Prometheus, "Text format details"; Triton's metrics.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from oip.server.extensions import ModelStatistics
from torchscript_predictor.statistics import Histogram, Recorder


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """What one served model version shows."""

    recorder: Recorder
    pending: int
    load_seconds: float


_Figure = Callable[[VersionFigures, ModelStatistics], float]

_COUNTERS: Sequence[tuple[str, str, _Figure]] = (
    (
        "nv_inference_request_success",
        "Number of successful inference requests, all batch sizes",
        lambda figures, statistics: statistics.inference.success.count,
    ),
    (
        "nv_inference_count",
        "Number of inferences performed (does not include cached requests)",
        lambda figures, statistics: statistics.inference_count,
    ),
    (
        "nv_inference_exec_count",
        "Number of model executions performed (does not include cached requests)",
        lambda figures, statistics: statistics.execution_count,
    ),
    (
        "nv_inference_request_duration_us",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        lambda figures, statistics: statistics.inference.success.nanoseconds // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        lambda figures, statistics: statistics.inference.queue.nanoseconds // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda figures, statistics: statistics.inference.compute_input.nanoseconds // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda figures, statistics: statistics.inference.compute_infer.nanoseconds // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda figures, statistics: statistics.inference.compute_output.nanoseconds // 1000,
    ),
)

_GAUGES: Sequence[tuple[str, str, _Figure]] = (
    (
        "nv_inference_pending_request_count",
        "Instantaneous number of pending requests awaiting execution per-model.",
        lambda figures, statistics: figures.pending,
    ),
    (
        "nv_model_load_duration_secs",
        "Model load time in seconds",
        lambda figures, statistics: figures.load_seconds,
    ),
)

_HISTOGRAMS: Sequence[tuple[str, str, Callable[[Recorder], Histogram]]] = (
    (
        "tandem_inference_request_seconds",
        "Seconds from a request's arrival at its model to its answer.",
        lambda recorder: recorder.request_seconds,
    ),
    ("tandem_inference_queue_seconds", "Seconds a request waited.", lambda recorder: recorder.queue_seconds),
    (
        "tandem_inference_compute_seconds",
        "Seconds a request was executed, its batch's gathering and splitting included.",
        lambda recorder: recorder.compute_seconds,
    ),
    ("tandem_inference_batch_size", "Rows of an execution.", lambda recorder: recorder.batch_size),
)


def exposition(versions: Iterable[VersionFigures]) -> str:
    """The text of all families; a family without series is left out."""
    figures = [(each, each.recorder.snapshot()) for each in versions]
    if not figures:
        return ""
    lines: list[str] = []
    for kind, families in (("counter", _COUNTERS), ("gauge", _GAUGES)):
        for name, meaning, figure in families:
            lines += _head(name, meaning, kind)
            lines += [f"{name}{{{_labels(each)}}} {figure(each, statistics)}" for each, statistics in figures]
    name = "nv_inference_request_failure"
    lines += _head(name, "Number of failed inference requests, all batch sizes", "counter")
    lines += [
        f'{name}{{{_labels(each)},reason="{reason.value}"}} {count}'
        for each, _ in figures
        for reason, count in each.recorder.failures.items()
    ]
    for name, meaning, histogram_of in _HISTOGRAMS:
        lines += _head(name, meaning, "histogram")
        for each, _ in figures:
            lines += _histogram(name, _labels(each), histogram_of(each.recorder))
    return "\n".join(lines) + "\n"


def _head(name: str, meaning: str, kind: str) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]


def _labels(figures: VersionFigures) -> str:
    """Model names are letters, digits and `_ . -`: nothing to be escaped."""
    return f'model="{figures.recorder.name}",version="{figures.recorder.version}"'


def _histogram(name: str, labels: str, histogram: Histogram) -> list[str]:
    lines = []
    count = 0
    for bound, found in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        count += found
        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {count}')
    return [*lines, f"{name}_count{{{labels}}} {count}", f"{name}_sum{{{labels}}} {histogram.total:.9g}"]
