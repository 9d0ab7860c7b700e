"""`tandem export module:factory --shape 3,224,224 --repository DIR`: a torch model into a model repository.

Scripts, traces or exports the model, checks the result against the model itself at one and at two rows, and writes
`<name>/config.pbtxt` and `<name>/<version>/model.pt` or `model.pt2`.  `--describe PATH` instead prints the
`config.pbtxt` for a model that is there already.  Knows torch; knows no server.
"""

import importlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

METHODS = ("auto", "script", "trace")
FORMATS = ("torchscript", "pt2")
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-4, 1e-5


class ExportError(Exception):
    """The model cannot be exported as asked; the message says why and what to try."""


def load_factory(name: str) -> Callable[[], Any]:
    """The callable behind `module:factory`, looked for in the working folder too.

    Raises:
        ExportError: there is no such thing.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise ExportError(f"{name!r} is no factory; write module:function, as in examples.imagenet.model:create")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ExportError(f"{name}: cannot be imported: {error}") from None
    if not callable(found):
        raise ExportError(f"{name}: is no function, but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def export(
    factory: Callable[[], Any],
    repository: Path,
    name: str,
    shape: Sequence[int],
    *,
    method: str = "auto",
    file_format: str = "torchscript",
    compiled: bool = True,
    max_batch_size: int = 8,
    version: int = 1,
    instances: int = 1,
    input_name: str = "INPUT__0",
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the model; returns its folder.

    Args:
        shape: one row's shape, without the batch dimension.
        method: for TorchScript: `script`, `trace`, or `auto`: script, and trace where that fails.
        file_format: `torchscript`, or `pt2`: torch.export.
        compiled: for `pt2`: an AOTInductor package, which needs a C++ compiler; else the exported program itself.
        max_batch_size: 0 for a model without a batch dimension, whose input is exactly `shape`.
        report: told what happens, in sentences.

    Raises:
        ExportError: the model fails, answers with something that is no tensor, or differs once exported.
    """
    import torch

    model = factory()
    if not isinstance(model, torch.nn.Module):
        raise ExportError(f"the factory must return a torch.nn.Module, got {type(model).__name__}")
    model = model.eval()
    torch.manual_seed(0)
    rows = [1, 2] if max_batch_size > 1 else [1]
    probes = [torch.randn(*((count, *shape) if max_batch_size else shape)) for count in rows]
    with torch.inference_mode():
        try:
            expected = [_as_tensors(model(probe)) for probe in probes]
        except Exception as error:
            raise ExportError(
                f"the model itself fails on an input of shape {list(probes[-1].shape)}: {error}"
            ) from error
    folder = repository / name
    target = folder / str(version) / _file_name(file_format)
    if file_format == "pt2":
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / target.name
            exported, how = _to_pt2(model, probes[-1], file, max_batch_size, compiled)
            _compare_all(exported, probes, expected, how, max_batch_size)
            _put(target, lambda partial: shutil.copyfile(file, partial))
    else:
        exported, how = _to_torchscript(model, probes[0], method, report)
        _compare_all(exported, probes, expected, how, max_batch_size)
        _put(target, lambda partial: _save(exported, partial))
    platform = "torch_aoti" if file_format == "pt2" else "pytorch_libtorch"
    config = _config(name, platform, shape, expected[0], max_batch_size, instances, input_name)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    report(f"{_done(how)}; equal to the model at {' and '.join(map(str, rows))} row{'s' if len(rows) > 1 else ''}")
    return folder


def _to_torchscript(model: Any, probe: Any, method: str, report: Callable[[str], None]) -> tuple[Any, str]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and tracing warns of every Python branch
        if method in ("auto", "script"):
            try:
                return torch.jit.script(model), "script"
            except Exception as error:
                if method == "script":
                    raise ExportError(
                        f"torch.jit.script refuses the model: {_first_line(error)}; try --method trace"
                    ) from error
                report(f"cannot be scripted ({_first_line(error)}), so it is traced")
        try:
            with torch.inference_mode():
                return torch.jit.trace(model, probe, check_trace=False), "trace"  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ExportError(f"torch.jit.trace fails: {_first_line(error)}") from error


def _to_pt2(model: Any, probe: Any, file: Path, max_batch_size: int, compiled: bool) -> tuple[Any, str]:
    """Write the file; what it holds as a function, and how it was made."""
    import torch

    rows = {0: torch.export.Dim("batch", min=1, max=max_batch_size)} if max_batch_size > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules, about each other
        try:
            program = torch.export.export(model, (probe,), dynamic_shapes=(rows,))
        except Exception as error:
            raise ExportError(
                f"torch.export refuses the model: {_first_line(error)}; try --format torchscript, or "
                "--max-batch-size 1 if it is about the batch"
            ) from error
        if not compiled:
            torch.export.save(program, file)
            return torch.export.load(file).module(), "export"
        try:
            # the kernels shall use the instance's threads, not as many as this machine has
            configs = {"cpp.dynamic_threads": True}
            torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=configs)
        except Exception as error:
            raise ExportError(
                f"AOTInductor cannot compile the model: {_first_line(error)}; it needs a C++ compiler. Try "
                "--no-compile, which needs none"
            ) from error
        return torch._inductor.aoti_load_package(str(file)), "compile"


def _compare_all(
    exported: Any, probes: Sequence[Any], expected: Sequence[Sequence[Any]], how: str, max_batch_size: int
) -> None:
    for probe, outputs in zip(probes, expected, strict=True):
        _compare(exported, probe, outputs, how, max_batch_size)


def _compare(exported: Any, probe: Any, expected: Sequence[Any], how: str, max_batch_size: int) -> None:
    import torch

    rows = probe.shape[0]
    remedy = "use --method script, or --max-batch-size 1" if how == "trace" else "use --max-batch-size 1"
    try:
        with torch.inference_mode():
            got = _as_tensors(exported(probe))
    except Exception as error:
        raise ExportError(
            f"the {_done(how)} model fails at {rows} rows, so its batch size is baked in: {_first_line(error)}; "
            f"{remedy}"
        ) from error
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        if one.shape != other.shape or not torch.allclose(
            one.double(), other.double(), rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE
        ):
            raise ExportError(
                f"output {index} of the {_done(how)} model differs from the model's at {rows} rows; {remedy}"
            )
        if max_batch_size and (one.ndim == 0 or one.shape[0] != rows):
            raise ExportError(
                f"output {index} has shape {list(one.shape)} for {rows} rows, so the model does not batch; "
                "use --max-batch-size 0 with the whole shape"
            )


def _as_tensors(outputs: Any) -> list[Any]:
    import torch

    items = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if not all(isinstance(item, torch.Tensor) for item in items):
        raise ExportError(
            f"the model must return a tensor or a tuple of tensors, "
            f"got {type(outputs).__name__}; wrap it in a module that does"
        )
    return items


def _file_name(file_format: str) -> str:
    return "model.pt2" if file_format == "pt2" else "model.pt"


def _done(how: str) -> str:
    return f"{how.removesuffix('e')}ed"


def _put(target: Path, write: Callable[[Path], object]) -> None:
    """A temporary name, then a rename: a server that watches the folder never sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    write(partial)
    partial.replace(target)


def _save(exported: Any, target: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(exported, str(target))


def _config(
    name: str,
    platform: str,
    shape: Sequence[int],
    outputs: Sequence[Any],
    max_batch_size: int,
    instances: int,
    input_name: str,
) -> str:
    """The `config.pbtxt`, written by the same descriptor that the predictor reads it with."""
    from google.protobuf import text_format

    from oip import proto

    config: Any = proto.ModelConfig(name=name, platform=platform, max_batch_size=max_batch_size)
    config.input.add(name=input_name, data_type="TYPE_FP32", dims=list(shape))
    for index, output in enumerate(outputs):
        dims = list(output.shape[1:] if max_batch_size else output.shape) or [1]
        entry = config.output.add(name=f"OUTPUT__{index}", data_type=_config_type(output), dims=dims)
        if max_batch_size and output.ndim == 1:
            entry.reshape.SetInParent()  # one number a row: the wire has [N, 1], the model [N]
    config.instance_group.add(count=instances, kind="KIND_CPU")
    return text_format.MessageToString(config, use_short_repeated_primitives=True)


def _config_type(output: Any) -> str:
    import torch

    from oip.datatypes import DATATYPES, datatype_of

    if output.dtype == torch.bfloat16:
        return DATATYPES["BF16"].config_name
    return DATATYPES[datatype_of(output.numpy())].config_name


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def describe(path: Path, *, allow_python_models: bool = False) -> str:
    """The `config.pbtxt` for each model at a path: a model's file or folder, or a repository.

    What is configured stands as it is; inputs and outputs that are not are found out.

    Raises:
        ExportError: a model cannot be described.
    """
    from torchscript_predictor.backends import LoadError
    from torchscript_predictor.backends.choice import PyTorchBackend
    from torchscript_predictor.configure import read_model_config
    from torchscript_predictor.model_config import ConfigError, config_text
    from torchscript_predictor.repository import ModelRepository, RepositoryError

    backend = PyTorchBackend(allow_python_models=allow_python_models)
    try:
        repository = ModelRepository([path])
        folders = [folder for found in repository.models().values() for folder in found]
        if not folders:
            raise ExportError(repository.empty_reason())
        return "\n".join(config_text(read_model_config(folder, backend)) for folder in folders)
    except (RepositoryError, ConfigError, LoadError) as error:
        raise ExportError(str(error)) from None


def _shape(text: str) -> list[int]:
    try:
        shape = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise ExportError(f"--shape {text!r} is no list of sides; write it as 3,224,224, without the batch dimension")
    return shape


@click.command("export", context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.argument("factory", required=False)
@click.option("--shape", help="One row's shape without the batch dimension, as in 3,224,224.")
@click.option("--repository", type=click.Path(file_okay=False, path_type=Path), help="Where to write.")
@click.option("--name", help="The model's name: its folder, and what clients call.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    default="torchscript",
    show_default=True,
    help="torchscript: model.pt; pt2: model.pt2, by torch.export.",
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=True,
    show_default=True,
    help="For pt2: compile with AOTInductor for processors like this one, or keep the exported program.",
)
@click.option(
    "--method", type=click.Choice(METHODS), default="auto", show_default=True, help="auto: script, else trace."
)
@click.option("--max-batch-size", default=8, show_default=True, help="0: the model has no batch dimension.")
@click.option("--version", default=1, show_default=True, help="The version's folder.")
@click.option("--instances", default=1, show_default=True, help="Copies that execute at the same time.")
@click.option("--input-name", default="INPUT__0", show_default=True)
@click.option(
    "--describe",
    "described",
    type=click.Path(exists=True, path_type=Path),
    help="Write nothing: print the config.pbtxt for the model (a file or folder) at this path.",
)
@click.option("--allow-python-models", is_flag=True, help="With --describe: run models that are Python code.")
def command(
    factory: str | None,
    shape: str | None,
    repository: Path | None,
    name: str | None,
    described: Path | None,
    allow_python_models: bool,
    version: int,
    **options: Any,
) -> None:
    """Write the torch model that FACTORY (module:function) returns into a model repository."""
    try:
        if described is not None:
            click.echo(describe(described, allow_python_models=allow_python_models).rstrip())
            return
        if not (factory and shape and repository and name):
            raise click.UsageError("FACTORY, --shape, --repository and --name are needed, or --describe PATH alone")
        folder = export(
            load_factory(factory), repository, name, _shape(shape), version=version, report=click.echo, **options
        )
    except ExportError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"wrote {folder}: config.pbtxt and {version}/{_file_name(options['file_format'])}")
