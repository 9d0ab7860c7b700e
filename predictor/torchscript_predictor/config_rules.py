"""The rules that a model configuration must keep, beyond being well-formed protobuf text.

Each rule reads the message and reports problems (the model cannot be served) or warnings (a field
has no effect here); no rule stops another, so that one look shows all that is wrong.  Rules and
wording follow Triton's model configuration documentation and core's `model_config_utils`.  Knows no
file system and no torch.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from math import prod
from pathlib import PurePosixPath
from typing import Any

from torchscript_predictor.config_places import Places
from torchscript_predictor.runtimes import Runtime, UnservedError, choose_runtime

MAX_INSTANCES = 1024
"""Instances of one model; a bound on threads."""

VARIABLE = -1


class Findings:
    """Problems and warnings about one file, each a sentence that begins with `file:line: `."""

    def __init__(self, file: str, places: Places) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.places = places
        self._file = file

    def problem(self, message: str, *path: str | int) -> None:
        self.problems.append(self._located(message, path))

    def no_effect(self, field: str, why: str, *path: str | int) -> None:
        self.warnings.append(self._located(f"{field} has no effect: {why}", path or (field,)))

    def warning(self, message: str, *path: str | int) -> None:
        self.warnings.append(self._located(message, path))

    def _located(self, message: str, path: tuple[str | int, ...]) -> str:
        line = self.places.line(*path) if path else None
        return f"{self._file}:{line}: {message}" if line else f"{self._file}: {message}"


def check(message: Any, model_name: str, gpu_count: int, findings: Findings) -> None:
    """Report everything that is wrong with a `ModelConfig` message, or has no effect, beyond its identity."""
    _check_unserved(message, findings)
    if message.max_batch_size < 0:
        findings.problem(
            f"max_batch_size is {message.max_batch_size}; it must be 0 (no batch dimension) or more", "max_batch_size"
        )
    for kind in ("input", "output"):
        _check_tensors(message, kind, findings)
    _check_version_policy(message, findings)
    _check_instance_groups(message, model_name, gpu_count, findings)
    for index, sample in enumerate(message.model_warmup):
        _check_warmup(message, sample, index, findings)


def check_identity(message: Any, model_name: str, files: Collection[str], findings: Findings) -> Runtime:
    """What the model is called and what runs it; any runtime where the message asks for none that is served."""
    if message.name and message.name != model_name:
        findings.problem(
            f"name is {message.name!r} but the folder is {model_name!r}; they must be equal, or leave name out", "name"
        )
    _check_filename(message, findings)
    if message.platform == "ensemble" or message.HasField("ensemble_scheduling"):
        findings.problem(
            "ensembles are not served; use one torch.nn.Module that calls the models in turn and export that, and the "
            "transformer for what comes before and after",
            "ensemble_scheduling" if message.HasField("ensemble_scheduling") else "platform",
        )
        return Runtime.TORCHSCRIPT
    try:
        runtime = choose_runtime(
            message.backend, message.platform, message.runtime, message.default_model_filename, files
        )
    except UnservedError as error:
        findings.problem(error.message, error.field)
        return Runtime.TORCHSCRIPT
    if message.runtime and not message.runtime.endswith(".py"):
        findings.no_effect("runtime", "each platform has one runtime here")
    return runtime


def _check_filename(message: Any, findings: Findings) -> None:
    filename = message.default_model_filename
    if filename and (filename in (".", "..") or "\\" in filename or PurePosixPath(filename).name != filename):
        findings.problem(
            f"default_model_filename is {filename[:80]!r}; it must be the name of a file in the version's folder",
            "default_model_filename",
        )


_NO_EFFECT = {
    "cc_model_filenames": "one file serves every device; set default_model_filename",
    "metric_tags": "metrics carry no extra labels",
    "model_metrics": "histogram buckets are fixed",
    "model_operations": "load libraries of custom operators with LD_PRELOAD",
}


def _check_unserved(message: Any, findings: Findings) -> None:
    """Fields that cannot be honoured: refused where ignoring them would change answers or safety."""
    present = {field.name for field, _ in message.ListFields()}
    if "sequence_batching" in present:
        findings.problem(
            "sequence batching is not served: every request is independent here; make the state an input and an output "
            "of the model, which the caller sends along, and leave sequence_batching out",
            "sequence_batching",
        )
    if message.model_transaction_policy.decoupled:
        findings.problem(
            "decoupled models are not served: TorchScript gives one answer a request",
            "model_transaction_policy",
            "decoupled",
        )
    if "model_repository_agents" in present:
        findings.problem(
            "model_repository_agents are not run, so the checks that they stand for would be skipped; leave them out",
            "model_repository_agents",
        )
    for field in ("batch_input", "batch_output"):
        if field in present:
            findings.problem(f"{field} is not served: the model would miss a tensor; leave it out", field)
    for field, why in _NO_EFFECT.items():
        if field in present:
            findings.no_effect(field, why)
    if message.response_cache.enable:
        findings.no_effect("response_cache", "there is no response cache")
    for field, _ in message.optimization.ListFields():
        findings.no_effect(f"optimization.{field.name}", "torch's own defaults are used", "optimization", field.name)


def _check_tensors(message: Any, kind: str, findings: Findings) -> None:
    tensors = message.input if kind == "input" else message.output
    if not tensors:
        findings.problem(f"the model configuration must contain at least one {kind}, none were specified")
    for name, count in Counter(tensor.name for tensor in tensors).items():
        if name and count > 1:
            findings.problem(f"{kind} {name!r} is declared {count} times; names must differ", kind, 1)
    for index, tensor in enumerate(tensors):
        where = f"model {kind} {tensor.name!r}"
        if not tensor.name:
            findings.problem(f"model {kind} {index} must specify 'name'", kind, index)
        _check_data_type(message, tensor, where, (kind, index), findings)
        _check_dims(message, tensor, where, (kind, index), findings)
        for flag in ("is_shape_tensor", "is_non_linear_format_io"):
            if getattr(tensor, flag):
                findings.problem(f"{where}: {flag} is for TensorRT alone; leave it out", kind, index, flag)
        if kind == "input":
            _check_input(tensor, where, index, findings)


def _check_input(tensor: Any, where: str, index: int, findings: Findings) -> None:
    if tensor.allow_ragged_batch:
        findings.problem(
            f"{where}: allow_ragged_batch is not served; leave it out and send equal shapes",
            *("input", index, "allow_ragged_batch"),
        )
    if tensor.format and len(tensor.dims) != 3:
        findings.problem(
            f"{where}: format is for 3 dims (FORMAT_NHWC, FORMAT_NCHW), there are {len(tensor.dims)}",
            *("input", index, "format"),
        )


def _check_data_type(message: Any, tensor: Any, where: str, path: tuple[str, int], findings: Findings) -> None:
    if not tensor.data_type:
        findings.problem(f"{where} must specify 'data_type', such as TYPE_FP32", *path)
        return
    if data_type_name(message, tensor.data_type) == "TYPE_STRING":
        dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        rank = len(dims) + (message.max_batch_size > 0)
        if rank != 1:
            findings.problem(
                f"{where}: a TorchScript model takes and gives strings as List[str], so the rank must be 1, it is "
                f"{rank}; use dims: [-1] with max_batch_size: 0, or dims: [1] with reshape {{ shape: [] }}",
                *path,
                "dims",
            )


def _check_dims(message: Any, tensor: Any, where: str, path: tuple[str, int], findings: Findings) -> None:
    if not tensor.dims:
        findings.problem(f"{where} must specify 'dims', such as dims: [ 3, 224, 224 ]", *path)
    for field, dims in (("dims", tensor.dims), ("shape", tensor.reshape.shape)):
        for index, dim in enumerate(dims):
            if dim < 1 and dim != VARIABLE:
                findings.problem(
                    f"{where}: {'reshape ' if field == 'shape' else ''}dimension {index} is {dim}; a dimension must be "
                    "an integer >= 1, or -1 for a variable size",
                    *path,
                    *(("dims", index) if field == "dims" else ("reshape", "shape", index)),
                )
    if tensor.HasField("reshape") and tensor.dims:
        fault = reshape_fault(tuple(tensor.dims), tuple(tensor.reshape.shape), batching=message.max_batch_size > 0)
        if fault:
            findings.problem(f"{where}: {fault}", *path, "reshape")


def reshape_fault(dims: tuple[int, ...], shape: tuple[int, ...], *, batching: bool) -> str | None:
    """Why a tensor of `dims` cannot be given the reshape `shape`; None if it can.

    The variable dimensions must be as many, and the fixed ones between them must hold the same
    number of elements piece by piece, so that each -1 has one meaning on both sides.
    """
    if not shape and not batching:
        return "an empty reshape needs max_batch_size > 0: without a batch dimension nothing would be left"
    if dims.count(VARIABLE) != shape.count(VARIABLE):
        return (
            f"dims {list(dims)} and reshape {list(shape)} have different numbers of variable-size dimensions; "
            "each -1 in dims needs one in reshape"
        )
    if list(_fixed_segments(dims)) != list(_fixed_segments(shape)):
        return f"dims {list(dims)} and reshape {list(shape)} hold different numbers of elements; they must be equal"
    return None


def _fixed_segments(dims: tuple[int, ...]) -> Iterator[int]:
    """Element counts of the runs of fixed dimensions before, between and after the variable ones."""
    segment: list[int] = []
    for dim in dims:
        if dim == VARIABLE:
            yield prod(segment)
            segment = []
        else:
            segment.append(dim)
    yield prod(segment)


def _check_version_policy(message: Any, findings: Findings) -> None:
    policy = message.version_policy
    if policy.HasField("latest") and policy.latest.num_versions < 1:
        findings.problem(
            f"version_policy latest num_versions is {policy.latest.num_versions}; it must be 1 or more",
            *("version_policy", "latest", "num_versions"),
        )
    if policy.HasField("specific"):
        if not policy.specific.versions:
            findings.problem(
                "version_policy specific lists no versions; list those to serve, as in versions: [ 1, 3 ]",
                *("version_policy", "specific"),
            )
        for index, version in enumerate(policy.specific.versions):
            if version < 1:
                findings.problem(
                    f"version_policy specific lists version {version}; versions are 1 or more",
                    *("version_policy", "specific", "versions", index),
                )


def _check_instance_groups(message: Any, model_name: str, gpu_count: int, findings: Findings) -> None:
    total = sum(max(1, group.count) for group in message.instance_group)
    if total > MAX_INSTANCES:
        findings.problem(
            f"instance_group asks for {total} instances; at most {MAX_INSTANCES} are allowed", "instance_group"
        )
    for index, group in enumerate(message.instance_group):
        path = ("instance_group", index)
        where = f"instance group {group.name or f'{model_name}_{index}'} of model {model_name}"
        kind = kind_name(group)
        if group.count < 0:
            findings.problem(f"{where} has count {group.count}; it must be 1 or more", *path, "count")
        if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            findings.problem(f"{where} has kind {kind} but specifies gpus; leave gpus out", *path, "gpus")
        elif kind == "KIND_GPU" and not gpu_count:
            findings.problem(
                f"{where} has kind KIND_GPU but no GPUs are available; use KIND_CPU or KIND_AUTO here", *path, "kind"
            )
        elif kind == "KIND_GPU":
            for gpu in group.gpus:
                if not 0 <= gpu < gpu_count:
                    findings.problem(
                        f"{where} specifies GPU {gpu}; the GPUs here are 0 to {gpu_count - 1}", *path, "gpus"
                    )
        if group.profile:
            findings.problem(f"{where}: profile is for TensorRT alone; leave it out", *path, "profile")
        for field, why in (
            ("rate_limiter", "executions are not rate limited"),
            ("passive", "every instance gets requests"),
            ("secondary_devices", "it is for TensorRT alone"),
            ("host_policy", "threads are not bound to NUMA nodes"),
        ):
            if any(present.name == field for present, _ in group.ListFields()):
                findings.no_effect(f"{where}: {field}", why, *path, field)


def _check_warmup(message: Any, sample: Any, index: int, findings: Findings) -> None:
    where = f"model_warmup sample {sample.name!r}"
    path = ("model_warmup", index)
    limit = max(1, message.max_batch_size)
    if not 0 <= sample.batch_size <= limit:
        findings.problem(
            f"{where} has batch_size {sample.batch_size}; it must be from 1 to {limit}", *path, "batch_size"
        )
    elif sample.batch_size == 0:
        findings.warning(f"{where} has batch_size 0 and is skipped", *path)
    declared = {tensor.name: tensor for tensor in message.input}
    if missing := sorted(declared.keys() - sample.inputs.keys()):
        findings.problem(f"{where} lacks input(s) {', '.join(missing)}; it must give every input", *path)
    for name, entry in sorted(sample.inputs.items()):
        if name not in declared:
            findings.problem(f"{where} gives input {name!r}; the model's are {', '.join(declared)}", *path)
            continue
        if entry.data_type != declared[name].data_type:
            findings.problem(
                f"{where}: input {name!r} has data_type {data_type_name(message, entry.data_type)}; the model takes "
                f"{data_type_name(message, declared[name].data_type)}",
                *path,
            )
        if not dims_match(tuple(declared[name].dims), tuple(entry.dims)) or any(dim < 0 for dim in entry.dims):
            findings.problem(
                f"{where}: input {name!r} has dims {list(entry.dims)}; they must be fixed and fit "
                f"{list(declared[name].dims)}",
                *path,
            )
        source = entry.WhichOneof("input_data_type")
        if source is None or (source != "input_data_file" and not getattr(entry, source)):
            findings.problem(f"{where}: input {name!r} must set one of zero_data, random_data, input_data_file", *path)
        elif source == "input_data_file" and not _is_confined(entry.input_data_file):
            findings.problem(
                f"{where}: input {name!r} has input_data_file {entry.input_data_file[:80]!r}; it must be a file under "
                "the model's folder warmup/",
                *path,
            )


def dims_match(declared: tuple[int, ...], given: tuple[int, ...]) -> bool:
    """Whether the given dimensions fit the declared ones, in which -1 fits any size."""
    return len(declared) == len(given) and all(
        want in (VARIABLE, got) for want, got in zip(declared, given, strict=True)
    )


def data_type_name(message: Any, number: int) -> str:
    """The name of a number of the enum `DataType`, such as "TYPE_FP32"."""
    enum = message.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    name: str = enum.values_by_number[number].name
    return name


def kind_name(group: Any) -> str:
    """The name of an instance group's kind, such as "KIND_CPU"."""
    name: str = group.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number[group.kind].name
    return name


def _is_confined(file: str) -> bool:
    path = PurePosixPath(file)
    return bool(file) and not path.is_absolute() and ".." not in path.parts and "\\" not in file
