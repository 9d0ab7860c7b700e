"""`tandem export module:factory --shape 3,224,224 --repository DIR`: a torch model into a model repository.

Scripts or traces the model, checks the result against the model itself at one and at two rows, and
writes `<name>/config.pbtxt` and `<name>/<version>/model.pt`.  Knows torch; knows no server.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

METHODS = ("auto", "script", "trace")
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
    max_batch_size: int = 8,
    version: int = 1,
    instances: int = 1,
    input_name: str = "INPUT__0",
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the model; returns its folder.

    Args:
        shape: one row's shape, without the batch dimension.
        method: `script`, `trace`, or `auto`: script, and trace where that fails.
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
    exported, how = _to_torchscript(model, probes[0], method, report)
    for probe, outputs in zip(probes, expected, strict=True):
        _compare(exported, probe, outputs, how, max_batch_size)
    folder = repository / name
    target = folder / str(version) / "model.pt"
    target.parent.mkdir(parents=True, exist_ok=True)
    _save(exported, target)
    config = _config(name, shape, expected[0], max_batch_size, instances, input_name)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    report(f"{how}d; equal to the model at {' and '.join(map(str, rows))} row{'s' if len(rows) > 1 else ''}")
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


def _compare(exported: Any, probe: Any, expected: Sequence[Any], how: str, max_batch_size: int) -> None:
    import torch

    rows = probe.shape[0]
    remedy = "use --method script, or --max-batch-size 1" if how == "trace" else "use --max-batch-size 1"
    try:
        with torch.inference_mode():
            got = _as_tensors(exported(probe))
    except Exception as error:
        raise ExportError(
            f"the {how}d model fails at {rows} rows, so its batch size is baked in: {_first_line(error)}; {remedy}"
        ) from error
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        if one.shape != other.shape or not torch.allclose(
            one.double(), other.double(), rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE
        ):
            raise ExportError(f"output {index} of the {how}d model differs from the model's at {rows} rows; {remedy}")
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


def _save(exported: Any, target: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A temporary name, then a rename: a server that watches the folder never sees half a file.
        partial = target.with_name(".model.pt.partial")
        torch.jit.save(exported, str(partial))
        partial.replace(target)


def _config(
    name: str, shape: Sequence[int], outputs: Sequence[Any], max_batch_size: int, instances: int, input_name: str
) -> str:
    """The `config.pbtxt`, written by the same descriptor that the predictor reads it with."""
    from google.protobuf import text_format

    from oip import proto

    config: Any = proto.ModelConfig(name=name, platform="pytorch_libtorch", max_batch_size=max_batch_size)
    config.input.add(name=input_name, data_type="TYPE_FP32", dims=list(shape))
    for index, output in enumerate(outputs):
        dims = list(output.shape[1:] if max_batch_size else output.shape) or [1]
        entry = config.output.add(name=f"OUTPUT__{index}", data_type=_config_type(output), dims=dims)
        if max_batch_size and output.ndim == 1:
            entry.reshape.SetInParent()  # one number a row: the wire has [N, 1], the model [N]
    config.instance_group.add(count=instances, kind="KIND_CPU")
    return text_format.MessageToString(config)


def _config_type(output: Any) -> str:
    import torch

    from oip.datatypes import DATATYPES, datatype_of

    if output.dtype == torch.bfloat16:
        return DATATYPES["BF16"].config_name
    return DATATYPES[datatype_of(output.numpy())].config_name


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _shape(text: str) -> list[int]:
    try:
        shape = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise ExportError(f"--shape {text!r} is no list of sides; write it as 3,224,224, without the batch dimension")
    return shape


@click.command("export", context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.argument("factory")
@click.option("--shape", required=True, help="One row's shape without the batch dimension, as in 3,224,224.")
@click.option("--repository", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where to write.")
@click.option("--name", required=True, help="The model's name: its folder, and what clients call.")
@click.option(
    "--method", type=click.Choice(METHODS), default="auto", show_default=True, help="auto: script, else trace."
)
@click.option("--max-batch-size", default=8, show_default=True, help="0: the model has no batch dimension.")
@click.option("--version", default=1, show_default=True, help="The version's folder.")
@click.option("--instances", default=1, show_default=True, help="Copies that execute at the same time.")
@click.option("--input-name", default="INPUT__0", show_default=True)
def command(
    factory: str,
    shape: str,
    repository: Path,
    name: str,
    method: str,
    max_batch_size: int,
    version: int,
    instances: int,
    input_name: str,
) -> None:
    """Write the torch model that FACTORY (module:function) returns into a model repository."""
    try:
        folder = export(
            load_factory(factory),
            repository,
            name,
            _shape(shape),
            method=method,
            max_batch_size=max_batch_size,
            version=version,
            instances=instances,
            input_name=input_name,
            report=click.echo,
        )
    except ExportError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"wrote {folder}: config.pbtxt and {version}/model.pt")
