"""A model's configuration: `config.pbtxt` read strictly into a frozen value.

The text is parsed by protobuf against Triton's own `ModelConfig`, so that every field of Triton's is
known and no other is; then `config_rules` has its say, and defaults are filled in as Triton does.
Knows no file system: the caller brings the text, and the name to call the file by in messages.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from google.protobuf import text_format

from oip.datatypes import BY_CONFIG_NAME
from oip.proto import ModelConfig as ModelConfigMessage
from oip.proto import message_class
from torchscript_predictor.config_batching import (
    check_dynamic_batching,
    fill_dynamic_batching,
    read_dynamic_batching,
)
from torchscript_predictor.config_places import Places
from torchscript_predictor.config_rules import (
    VARIABLE,
    Findings,
    check,
    check_identity,
    data_type_name,
    kind_name,
)
from torchscript_predictor.parameters import ExecutionParameters, ParameterError, read_parameters
from torchscript_predictor.runtimes import AOTI, Runtime
from torchscript_predictor.scheduling.policy import DynamicBatching
from torchscript_predictor.version_policy import VersionPolicy

FILE = "config.pbtxt"


class ConfigError(ValueError):
    """A configuration that cannot be served; the message names file, line, field and remedy."""


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """An input or output as the configuration declares it.

    `dims` are a request's or answer's dimensions without the batch dimension; -1 is a variable one.
    `reshape`, where not None, is what the model itself takes or gives in their place.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None

    @property
    def datatype(self) -> str:
        """The wire name, such as "FP32"."""
        return BY_CONFIG_NAME[self.data_type].name

    def shape(self, max_batch_size: int) -> tuple[int, ...]:
        """The wire shape, with a leading -1 where the model batches."""
        return (-1, *self.dims) if max_batch_size > 0 else self.dims


@dataclass(frozen=True, slots=True)
class ModelInput(ModelTensor):
    """An entry of `input`.  An `optional` one may be missing from a request."""

    optional: bool = False


class ModelOutput(ModelTensor):
    """An entry of `output`."""


_Tensor = TypeVar("_Tensor", bound=ModelTensor)


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """`count` instances of a kind; for KIND_GPU, on each of `gpus`.  Never KIND_AUTO: that is decided."""

    name: str
    kind: str
    count: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """One tensor of a sample, without batch dimension.

    `source` is "zero_data", "random_data", or "input_data_file" with `file` under the folder `warmup`.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    source: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """A request to run before a model is ready: `batch_size` copies of its inputs, `count` times."""

    name: str
    batch_size: int
    count: int
    inputs: tuple[WarmupInput, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The parsed `config.pbtxt` with defaults filled in; `message` is the same as Triton's message.

    `runtime` executes the file; it may be TorchScript although the message says Python (a `model.pt` alone).
    """

    name: str
    runtime: Runtime
    platform: str
    backend: str
    max_batch_size: int
    inputs: tuple[ModelInput, ...]
    outputs: tuple[ModelOutput, ...]
    version_policy: VersionPolicy
    instance_groups: tuple[InstanceGroup, ...]
    parameters: ExecutionParameters
    warmup: tuple[WarmupSample, ...]
    model_filename: str
    message: Any
    dynamic_batching: DynamicBatching | None = None
    warnings: tuple[str, ...] = ()

    def input(self, name: str) -> ModelInput:
        """The input of that name; KeyError if there is none."""
        return _named(self.inputs, name)

    def output(self, name: str) -> ModelOutput:
        """The output of that name; KeyError if there is none."""
        return _named(self.outputs, name)


@dataclass(frozen=True, slots=True)
class Description:
    """A model's inputs and outputs, where they were not configured but found out."""

    max_batch_size: int
    inputs: tuple[ModelInput, ...]
    outputs: tuple[ModelOutput, ...]


def parse_model_config(
    text: str,
    name: str,
    *,
    gpu_count: int = 0,
    files: Collection[str] = (),
    rename: bool = False,
    amend: Callable[[Any], Sequence[str]] = lambda message: (),
    describe: Callable[[ModelConfig], Description] | None = None,
) -> ModelConfig:
    """Read the configuration of the model in the folder `name`.

    Args:
        gpu_count: how many GPUs this machine has, for instance groups.
        files: names of the files of a version, for a configuration that does not say what runs them.
        rename: whether `name` replaces the configuration's own name instead of having to equal it.
        amend: changes the message before it is checked, and says what to warn about.
        describe: finds out the inputs and outputs of a model whose configuration has neither.

    Raises:
        ConfigError: the text is no `ModelConfig`, or breaks a rule.  All broken rules are named.
    """
    file = f"{name}/{FILE}"
    message = ModelConfigMessage()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ConfigError(_syntax_message(file, str(error))) from None
    if rename:
        message.name = name
    findings = Findings(file, Places(text))
    for warning in amend(message):
        findings.warning(warning)
    runtime = check_identity(message, name, files, findings)
    message.name = name
    parameters = _read_parameters(message, runtime, gpu_count > 0, findings)
    if describe and not message.input and not message.output and not findings.problems:
        _complete(message, describe(_finished(message, runtime, files, parameters, gpu_count)))
    check(message, name, gpu_count, findings)
    check_dynamic_batching(message, findings)
    if findings.problems:
        raise ConfigError("; ".join(findings.problems))
    return _finished(message, runtime, files, parameters, gpu_count, tuple(findings.warnings))


def declared_name(text: str) -> str:
    """The `name` that a configuration gives itself; "" if it gives none or is no configuration."""
    try:
        name: str = text_format.Parse(text, ModelConfigMessage()).name
    except text_format.ParseError:
        return ""
    return name


def config_text(config: ModelConfig) -> str:
    """The `config.pbtxt` that says what this configuration says of inputs and outputs, and no more."""
    written = ModelConfigMessage(
        name=config.name, platform=config.platform, backend=config.backend, max_batch_size=config.max_batch_size
    )
    _complete(written, Description(config.max_batch_size, config.inputs, config.outputs))
    return str(text_format.MessageToString(written, use_short_repeated_primitives=True))


def _complete(message: Any, description: Description) -> None:
    message.max_batch_size = description.max_batch_size
    for kind, tensors in (("input", description.inputs), ("output", description.outputs)):
        for tensor in tensors:
            entry = getattr(message, kind).add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            if tensor.reshape is not None:
                entry.reshape.SetInParent()
                entry.reshape.shape.extend(tensor.reshape)


def _finished(
    message: Any,
    runtime: Runtime,
    files: Collection[str],
    parameters: ExecutionParameters,
    gpu_count: int,
    warnings: tuple[str, ...] = (),
) -> ModelConfig:
    """The value of a copy of the message with defaults filled in."""
    filled = ModelConfigMessage()
    filled.CopyFrom(message)
    _fill_defaults(filled, runtime, gpu_count)
    # Triton's Python runtime serves a TorchScript file where there is no model.py
    torchscript = Runtime.TORCHSCRIPT.value
    if runtime is Runtime.PYTHON and filled.default_model_filename not in files and torchscript in files:
        runtime, filled.default_model_filename = Runtime.TORCHSCRIPT, torchscript
    return _value(filled, runtime, parameters, warnings)


def reshaped(shape: tuple[int, ...], given: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The actual dimensions `shape`, which fit `given`, in the form of `wanted`.

    The n-th -1 of `wanted` becomes what stands at the n-th -1 of `given`; `config_rules` has made sure
    that there are as many.
    """
    variable = iter([size for size, dim in zip(shape, given, strict=True) if dim == VARIABLE])
    return tuple(next(variable) if dim == VARIABLE else dim for dim in wanted)


def _syntax_message(file: str, error: str) -> str:
    """text_format's "line:column : text" as ours, with the nearest field where one is misspelt."""
    place, separator, reason = error.partition(" : ")
    if not separator:
        return f"{file}: {error}"
    unknown = re.search(r'Message type "inference\.([\w.]+)" has no field named "(\w+)"', reason)
    if unknown:
        fields = message_class(unknown[1]).DESCRIPTOR.fields_by_name
        near = get_close_matches(unknown[2], fields, n=1)
        reason += f" Did you mean {near[0]}?" if near else " Take it out."
    return f"{file}:{place}: {reason}"


def _read_parameters(message: Any, runtime: Runtime, has_gpu: bool, findings: Findings) -> ExecutionParameters:
    def path(key: str) -> tuple[str | int, ...]:
        return ("parameters", *findings.places.entries("parameters", key)[-1:])

    texts = {key: entry.string_value for key, entry in sorted(message.parameters.items())}
    for key in texts:
        if len(findings.places.entries("parameters", key)) > 1:
            findings.warning(f"parameter {key} is given several times; the last one counts", *path(key))
    try:
        parameters, warnings = read_parameters(texts, runtime, has_gpu=has_gpu)
    except ParameterError as error:
        findings.problem(str(error), *path(error.key))
        return ExecutionParameters()
    for key, warning in warnings:
        findings.warning(warning, *path(key))
    return parameters


def _fill_defaults(message: Any, runtime: Runtime, gpu_count: int) -> None:
    """Make the message what Triton's `/config` shows: nothing left to be guessed."""
    message.backend = message.backend or "pytorch"
    if message.backend == "pytorch":
        message.platform = AOTI if runtime is Runtime.PT2 else "pytorch_libtorch"
        if runtime is Runtime.PYTHON:
            message.runtime = Runtime.PYTHON.value
    message.default_model_filename = message.default_model_filename or runtime.value
    if message.version_policy.WhichOneof("policy_choice") is None:
        message.version_policy.latest.num_versions = 1
    for buffer in ("input_pinned_memory", "output_pinned_memory"):
        if not message.optimization.HasField(buffer):
            getattr(message.optimization, buffer).enable = True
    if not message.instance_group:
        message.instance_group.add()
    for index, group in enumerate(message.instance_group):
        group.name = group.name or f"{message.name}_{index}"
        group.count = max(1, group.count)
        if kind_name(group) == "KIND_AUTO":
            usable = gpu_count and all(0 <= gpu < gpu_count for gpu in group.gpus)
            group.kind = group.KIND_GPU if usable else group.KIND_CPU
            if not usable:
                del group.gpus[:]
        if kind_name(group) == "KIND_GPU" and not group.gpus:
            group.gpus.extend(range(gpu_count))
    fill_dynamic_batching(message)


def _value(message: Any, runtime: Runtime, parameters: ExecutionParameters, warnings: tuple[str, ...]) -> ModelConfig:
    return ModelConfig(
        name=message.name,
        runtime=runtime,
        platform=message.platform,
        backend=message.backend,
        max_batch_size=message.max_batch_size,
        inputs=tuple(ModelInput(*_tensor(message, tensor), tensor.optional) for tensor in message.input),
        outputs=tuple(ModelOutput(*_tensor(message, tensor)) for tensor in message.output),
        version_policy=_version_policy(message.version_policy),
        instance_groups=tuple(
            InstanceGroup(group.name, kind_name(group), group.count, tuple(group.gpus))
            for group in message.instance_group
        ),
        parameters=parameters,
        warmup=tuple(_warmup(message, sample) for sample in message.model_warmup if sample.batch_size),
        model_filename=message.default_model_filename,
        message=message,
        dynamic_batching=read_dynamic_batching(message),
        warnings=warnings,
    )


def _tensor(message: Any, tensor: Any) -> tuple[str, str, tuple[int, ...], tuple[int, ...] | None]:
    """The fields of a `ModelTensor`."""
    reshape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None
    return tensor.name, data_type_name(message, tensor.data_type), tuple(tensor.dims), reshape


def _version_policy(policy: Any) -> VersionPolicy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return VersionPolicy("all")
        case "specific":
            return VersionPolicy("specific", versions=tuple(policy.specific.versions))
        case _:
            return VersionPolicy("latest", num_versions=policy.latest.num_versions)


def _warmup(message: Any, sample: Any) -> WarmupSample:
    return WarmupSample(
        name=sample.name,
        batch_size=sample.batch_size,
        count=max(1, sample.count),
        inputs=tuple(
            WarmupInput(
                name=name,
                data_type=data_type_name(message, entry.data_type),
                dims=tuple(entry.dims),
                source=entry.WhichOneof("input_data_type"),
                file=entry.input_data_file,
            )
            for name, entry in sorted(sample.inputs.items())
        ),
    )


def _named(tensors: Sequence[_Tensor], name: str) -> _Tensor:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise KeyError(name)
