"""The PT2 runtime: `model.pt2`, an AOTInductor package or a saved ExportedProgram.

Both are functions of flat tensors with a call specification: inputs are named by argument, as AOTInductor's users
write them (`ARGS[0]`, `KWARGS[mask]`) or `<name>__<index>`.  Loads into a `Program`; all else is `program`'s.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from oip.errors import InferenceError, InvalidArgument
from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.aoti import FOLDER, Library, Package, PackageError, checking, leaf_names
from torchscript_predictor.backends.arrays import data_type_of
from torchscript_predictor.backends.failure import reason
from torchscript_predictor.backends.program import Program, TorchModel, input_device
from torchscript_predictor.config_rules import VARIABLE
from torchscript_predictor.deriving import MAX_BATCH_SIZE
from torchscript_predictor.model_config import Description, ModelConfig, ModelInput, ModelOutput
from torchscript_predictor.signature import REQUIRED, Argument, leaves
from torchscript_predictor.warmup import PICTURE_SIDE, Arrays, zero_inputs

_ROOTS = ("ARGS", "KWARGS")
_KEYWORD = re.compile(r"KWARGS\[([^\[\]]+)\]")


class ExportedBackend:
    """Loads `model.pt2` files."""

    def gpu_count(self) -> int:
        """See `Backend.gpu_count`."""
        return torch.cuda.device_count()

    def load(self, path: Path, config: ModelConfig, device: str | None) -> TorchModel:
        """See `Backend.load`."""
        if not _is_package(path, config):
            return TorchModel(_program_of(_exported(path, config), device), config)
        try:
            return _package_model(Package(path), config, device)
        except (PackageError, zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
            raise LoadError(f"failed to load model '{config.name}': {error}") from None

    def describe(self, path: Path, config: ModelConfig) -> Description:
        """See `Backend.describe`."""
        if _is_package(path, config):
            raise LoadError(
                f"the inputs and outputs of model '{config.name}' cannot be derived: an AOTInductor package does not "
                "say its shapes; write config.pbtxt with input and output (tandem export --format pt2 does)"
            )
        return describe_exported(_exported(path, config), config.max_batch_size)


def _is_package(path: Path, config: ModelConfig) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        raise LoadError(
            f"failed to load model '{config.name}': {path.name} is no PT2 archive; write it with torch.export.save or "
            "tandem export --format pt2"
        ) from None
    return any("/" + FOLDER in name for name in names)


def _exported(path: Path, config: ModelConfig) -> Any:
    try:
        return torch.export.load(path)
    except Exception as error:
        raise LoadError(
            f"failed to load model '{config.name}': {path.name} cannot be read: {reason(error)}; write it with this "
            f"torch ({torch.__version__})"
        ) from error


def _program_of(exported: Any, device: str | None) -> Program:
    where = input_device(device)
    if where is not None:
        from torch.export.passes import move_to_device_pass

        exported = move_to_device_pass(exported, str(where))
    module = exported.module()
    spec = exported.call_spec.in_spec

    def call(*flat: Any) -> Any:
        args, kwargs = pytree.tree_unflatten(flat, spec)
        return module(*args, **kwargs)

    state = [tensor for tensor in (*exported.state_dict.values(), *exported.constants.values()) if _is_tensor(tensor)]
    return Program(call, _exported_arguments(exported), tuple(state), where)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _exported_arguments(exported: Any) -> tuple[Argument, ...]:
    paths = leaf_names(exported.call_spec.in_spec, _ROOTS)
    specs = [entry.arg for entry in exported.graph_signature.input_specs if entry.kind.name == "USER_INPUT"]
    arguments = []
    for path, spec in zip(paths, specs, strict=True):
        if type(spec).__name__ == "TensorArgument":
            arguments.append(Argument(spec.name, "Tensor", aliases=(path,)))
        elif type(spec).__name__ == "ConstantArgument":  # exported with this value and no other
            arguments.append(Argument(spec.name, "constant", spec.value, (path,)))
        else:
            kinds = {"SymIntArgument": "int", "SymFloatArgument": "float", "SymBoolArgument": "bool"}
            arguments.append(Argument(spec.name, kinds.get(type(spec).__name__, "object"), REQUIRED, (path,)))
    return tuple(arguments)


def _package_model(package: Package, config: ModelConfig, device: str | None) -> TorchModel:
    """The model of a package, once a copy of it has taken inputs of the configured shapes."""
    wanted = "cpu" if device in (None, "cpu") else "cuda"
    if device is not None and package.device != wanted:
        raise PackageError(
            f"the package is compiled for {package.device}, the instance is on {wanted}; change instance_group's kind, "
            "or compile it for that device"
        )
    where = input_device(device)
    if not package.is_self_contained:
        return TorchModel(_by_loader(package, config, where), config)
    warnings = _tried(TorchModel(_called(package, config, device, where), config), config)
    model = TorchModel(_called(package, config, device, where, warnings), config)
    with checking(wanted=False):
        _refusal(model, _trials(config)[0])
    return model


def _trials(config: ModelConfig) -> list[Arrays]:
    """Zeros of the configured shapes: two rows, for one is a special case to torch.export, and as many as allowed."""
    sizes = sorted({min(2, config.max_batch_size), config.max_batch_size}) if config.max_batch_size else [1]
    made = [zero_inputs(config, size, variable) for size in sizes for variable in (PICTURE_SIDE, PICTURE_SIDE + 1)]
    return [inputs for inputs in made if inputs is not None]


def _tried(model: TorchModel, config: ModelConfig) -> tuple[str, ...]:
    """What to tell the operator of a package that was run with checks on.

    Raises:
        PackageError: it is compiled for other shapes than the configured ones.
    """
    with checking(wanted=True):
        refused = [reason for inputs in _trials(config) if (reason := _refusal(model, inputs))]
    if not refused:
        return ()
    if all(size != VARIABLE for tensor in config.inputs for size in tensor.dims):
        raise PackageError(
            f"its package is compiled for other shapes or datatypes than dims and max_batch_size say ({refused[0]}); "
            "its words are on standard error"
        )
    return (
        f"model '{config.name}': its package refuses some sizes that dims or max_batch_size allow ({refused[0]}); "
        "write the sizes that it was compiled for into dims: it does not check requests",
    )


def _refusal(model: TorchModel, inputs: Arrays) -> str:
    """Why the model does not execute these inputs, and their shapes; "" if it does."""
    try:
        model.execute(inputs)
    except InvalidArgument:  # it ran; what it gives is the warm-up's concern
        return ""
    except InferenceError:
        return ", ".join(f"not {list(array.shape)} for '{name}'" for name, array in inputs.items())
    return ""


def _called(
    package: Package,
    config: ModelConfig,
    device: str | None,
    where: torch.device | None,
    warnings: tuple[str, ...] = (),
) -> Program:
    """A new copy of a package's library as a program."""
    sharing = config.parameters.weight_sharing
    runners = sum(group.count for group in config.instance_groups) if sharing else 1
    library = Library(package, device or package.device, runners)
    in_spec, out_spec = (pytree.treespec_loads(spec) for spec in library.call_spec())
    arguments = _package_arguments(in_spec)
    if len(arguments) != library.input_count:
        raise PackageError(
            f"the package takes {library.input_count} tensors for {len(arguments)} arguments, so some are constants; "
            "export a module that takes tensors alone"
        )

    def call(*tensors: torch.Tensor) -> Any:
        stream = torch.cuda.current_stream(where).cuda_stream if where is not None else None
        return pytree.tree_unflatten(library(tensors, stream), out_spec)

    return Program(call, arguments, (), where, warnings)


def _package_arguments(in_spec: Any) -> tuple[Argument, ...]:
    """Keyword arguments go by their names too."""
    named = [(path, _KEYWORD.fullmatch(path)) for path in leaf_names(in_spec, _ROOTS)]
    return tuple(Argument(path, "Tensor", aliases=(keyword[1],) if keyword else ()) for path, keyword in named)


def _by_loader(package: Package, config: ModelConfig, where: torch.device | None) -> Program:
    index = -1 if where is None or where.index is None else where.index
    try:
        model = torch._inductor.aoti_load_package(str(package.path), device_index=index)
    except Exception as error:
        raise PackageError(reason(error)) from error
    in_spec, out_spec = (pytree.treespec_loads(spec) for spec in model.loader.get_call_spec())
    warning = (
        f"model '{config.name}': its package calls operators by name or keeps weights beside its library, so it runs "
        "through torch's own loader, which holds up this process while it computes; a TorchScript file would not"
    )

    def call(*tensors: torch.Tensor) -> Any:
        return pytree.tree_unflatten(model.loader.boxed_run(list(tensors)), out_spec)

    return Program(call, _package_arguments(in_spec), (), where, (warning,))


def describe_exported(exported: Any, max_batch_size: int = 0) -> Description:
    """The inputs and outputs that an ExportedProgram declares; symbolic sizes are variable dimensions.

    It batches where every tensor's first size is the same symbol.
    """
    nodes = {node.name: node for node in exported.graph.nodes}
    inputs = [
        (entry.arg.name, nodes[entry.arg.name].meta["val"])
        for entry in exported.graph_signature.input_specs
        if entry.kind.name == "USER_INPUT" and type(entry.arg).__name__ == "TensorArgument"
    ]
    values = [
        nodes[entry.arg.name].meta["val"]
        for entry in exported.graph_signature.output_specs
        if entry.kind.name == "USER_OUTPUT" and type(entry.arg).__name__ == "TensorArgument"
    ]
    sizes = {str(value.shape[0]) if value.dim() else "" for value in (*(value for _, value in inputs), *values)}
    batched = len(sizes) == 1 and not next(iter(sizes)).isdecimal() and sizes != {""}
    if max_batch_size and not batched:
        raise LoadError(
            f"max_batch_size is {max_batch_size}, but the program was not exported with a variable first dimension; "
            "export it with dynamic_shapes, or set max_batch_size: 0"
        )
    largest = min((_largest(exported, value) for _, value in inputs), default=MAX_BATCH_SIZE)
    names = _result_names(exported, len(values))
    return Description(
        (max_batch_size or min(MAX_BATCH_SIZE, largest)) if batched else 0,
        tuple(ModelInput(name, *_declared(value, batched=batched)) for name, value in inputs),
        tuple(ModelOutput(name, *_declared(value, batched=batched)) for name, value in zip(names, values, strict=True)),
    )


def _largest(exported: Any, value: Any) -> int:
    """The largest first size that the export allows."""
    if not value.dim() or isinstance(value.shape[0], int):
        return MAX_BATCH_SIZE
    allowed = exported.range_constraints.get(value.shape[0].node.expr)
    upper = getattr(allowed, "upper", None)
    return int(upper) if upper is not None and upper.is_Integer and upper < MAX_BATCH_SIZE else MAX_BATCH_SIZE


def _declared(value: Any, *, batched: bool) -> tuple[str, tuple[int, ...], tuple[int, ...] | None]:
    """Data type, dims and reshape."""
    dims = tuple(size if isinstance(size, int) and size else -1 for size in value.shape[1 if batched else 0 :])
    return data_type_of(value), dims or (1,), () if batched and not dims else None


def _result_names(exported: Any, count: int) -> list[str]:
    spec = exported.call_spec.out_spec
    names = [leaf.name for leaf in leaves(pytree.tree_unflatten([0] * spec.num_leaves, spec))]
    if len(names) == count and all(names) and len(set(names)) == count:
        return names
    return [f"OUTPUT__{index}" for index in range(count)]
