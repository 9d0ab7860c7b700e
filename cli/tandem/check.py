"""`tandem check DIR`: would the predictor serve these models?  Loads each, says its verdict, serves nothing.

Loads with the predictor's own code, so that the verdict is its.  The exit status is for CI: 0 if every model would be
served, 1 if not, 2 for a wrong command line.
"""

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from oip.messages import TensorMetadata
from torchscript_predictor.data_plane import PredictorDataPlane
from torchscript_predictor.repository import ModelRepository, RepositoryError
from torchscript_predictor.states import ModelState
from torchscript_predictor.threads import calm_openmp

_SUBJECT = re.compile(r"(?:model '?)?([A-Za-z0-9_.-]+)")
"""Messages begin with `<model>/<file>`, `model <name>` or `model '<name>'`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What would become of one model version; `version` is "-" for a model that has none."""

    model: str
    version: str
    served: bool
    reason: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    warnings: tuple[str, ...]


def check(
    paths: Sequence[Path],
    *,
    model_name: str | None = None,
    allow_python_models: bool = False,
) -> list[Verdict]:
    """The verdict on every model.

    Raises:
        RepositoryError: a path is no repository and no model.
    """
    from torchscript_predictor.backends.choice import PyTorchBackend

    repository = ModelRepository(paths, model_name)
    notes = _Notes()
    logger = logging.getLogger("torchscript_predictor")
    logger.addHandler(notes)
    try:
        return asyncio.run(
            _verdicts(
                PredictorDataPlane(repository, lambda: PyTorchBackend(allow_python_models=allow_python_models)), notes
            )
        )
    finally:
        logger.removeHandler(notes)


async def _verdicts(plane: PredictorDataPlane, notes: "_Notes") -> list[Verdict]:
    await plane.start()
    try:
        verdicts = []
        for status in await plane.loaded():
            served = status.state is ModelState.READY
            metadata = plane.model_metadata(status.name, status.version) if served else None
            verdicts.append(
                Verdict(
                    model=status.name,
                    version=status.version,
                    served=served,
                    reason=status.reason,
                    inputs=_tensors(metadata.inputs if metadata else ()),
                    outputs=_tensors(metadata.outputs if metadata else ()),
                    warnings=notes.about(status.name),
                )
            )
        return verdicts
    finally:
        await plane.stop()


def _tensors(tensors: Iterable[TensorMetadata]) -> tuple[str, ...]:
    return tuple(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)


class _Notes(logging.Handler):
    """The warnings that loading logs, by model."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._notes: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.WARNING:
            return  # the reason of a verdict
        text = record.getMessage()
        subject = _SUBJECT.match(text)
        self._notes.setdefault(subject[1] if subject else "", []).append(text)

    def about(self, model: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._notes.get(model, ())))


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """The verdicts for a person."""
    shown = []
    for verdict in verdicts:
        title = f"{verdict.model} version {verdict.version}" if verdict.version != "-" else verdict.model
        if verdict.served:
            shown.append(f"ok      {title}: {', '.join(verdict.inputs)} -> {', '.join(verdict.outputs)}")
        else:
            shown.append(f"refused {title}: {verdict.reason}")
        shown += [f"        warning: {warning}" for warning in verdict.warnings]
    refused = sum(not verdict.served for verdict in verdicts)
    warned = len({warning for verdict in verdicts for warning in verdict.warnings})
    shown.append(f"{len(verdicts) - refused} of {len(verdicts)} model versions would be served, warnings: {warned}")
    return shown


@click.command("check", context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.argument("repositories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--model-name", help="What to call the model where DIR itself is one.")
@click.option("--allow-python-models", is_flag=True, help="Run models that are Python code (model.py).")
@click.option("--strict", is_flag=True, help="Warnings count as refusals.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
def command(
    repositories: tuple[Path, ...], model_name: str | None, allow_python_models: bool, strict: bool, as_json: bool
) -> None:
    """Say of each model in DIR (a model repository, or one model) whether the predictor would serve it, or why not."""
    calm_openmp()
    logging.getLogger("torchscript_predictor").propagate = False  # the verdicts say what the log would
    try:
        verdicts = check(repositories, model_name=model_name, allow_python_models=allow_python_models)
    except RepositoryError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        documents: list[dict[str, Any]] = [asdict(verdict) for verdict in verdicts]
        click.echo(json.dumps(documents, indent=2))
    else:
        click.echo("\n".join(lines(verdicts)))
    bad = [verdict for verdict in verdicts if not verdict.served or (strict and verdict.warnings)]
    sys.exit(1 if bad or not verdicts else 0)
