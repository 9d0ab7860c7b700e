"""`python -m torchscript_predictor`: the predictor as a process.

Reads the command line, then serves.  torch is imported when the first model loads, so that `--help` and
a wrong flag answer at once.
"""

import logging
import sys
from functools import partial

import click
from rich.console import Console

from oip.server.flags import settings_command
from oip.server.metrics import ServerMetrics
from oip.server.service import Service, serve
from torchscript_predictor.backends import Backend
from torchscript_predictor.data_plane import PredictorDataPlane
from torchscript_predictor.memory import keep_what_is_imported
from torchscript_predictor.report import models_table
from torchscript_predictor.repository import ModelRepository, RepositoryError
from torchscript_predictor.settings import NO_EFFECT, PredictorSettings
from torchscript_predictor.states import ModelState
from torchscript_predictor.threads import calm_openmp

logger = logging.getLogger("torchscript_predictor")

TABLE_WIDTH = 140
"""Where standard output is no terminal that has a width of its own."""


def pytorch_backend(settings: PredictorSettings) -> Backend:
    """The backend for every runtime of PyTorch's; imports torch.

    Raises:
        LoadError: torch is not installed.
    """
    from torchscript_predictor.backends.choice import PyTorchBackend

    backend = PyTorchBackend(
        allow_python_models=settings.allow_python_models,
        describes_models=not settings.disable_auto_complete_config,
    )
    keep_what_is_imported()
    return backend


def open_repository(settings: PredictorSettings) -> ModelRepository:
    """The model repository of the settings.

    Raises:
        RepositoryError: a folder is missing, or there is no model in any though all are to be served.
    """
    repository = ModelRepository(settings.model_repository, settings.model_name)
    if settings.model_control_mode == "none" and not repository.models():
        raise RepositoryError(repository.empty_reason())
    return repository


def predictor_data_plane(repository: ModelRepository, settings: PredictorSettings) -> PredictorDataPlane:
    """The data plane that the settings describe."""
    return PredictorDataPlane(
        repository,
        partial(pytorch_backend, settings),
        models=settings.models_at_start(),
        strict_readiness=settings.strict_readiness,
        load_threads=settings.model_load_thread_count,
        max_queue_size=settings.max_queue_size,
        execution_threads=settings.execution_threads or None,
        drain_seconds=settings.exit_timeout_seconds,
        control_mode=settings.model_control_mode,
        poll_seconds=settings.repository_poll_secs,
        client_shared_memory=settings.allow_client_shm,
    )


async def report_start(service: Service, plane: PredictorDataPlane, settings: PredictorSettings) -> int | None:
    """Wait until loading is over and print the table; the exit status, or None to go on serving."""
    statuses = await plane.loaded()
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    console.print(models_table(statuses))
    failed = sum(status.state is not ModelState.READY for status in statuses)
    if failed and settings.exit_on_error:
        logger.error(
            "%d of %d model versions could not be loaded; mend them, or serve the others with --exit-on-error=false",
            failed,
            len(statuses),
        )
        return 1
    logger.info("serving at %s", ", ".join(service.addresses))
    return None


def run(settings: PredictorSettings, arguments: tuple[str, ...]) -> None:
    """Serve until told to stop; ends the process with the service's status."""
    calm_openmp()
    for warning in settings.warnings():
        logger.warning("%s", warning)
    try:
        repository = open_repository(settings)
    except RepositoryError as error:
        raise click.ClickException(str(error)) from None
    planes: list[PredictorDataPlane] = []
    metrics = ServerMetrics()

    def plane() -> PredictorDataPlane:
        planes.append(predictor_data_plane(repository, settings))
        metrics.add_text(planes[0].metrics_text)
        return planes[0]

    async def started(service: Service) -> int | None:
        return await report_start(service, planes[0], settings)

    sys.exit(
        serve(
            plane,
            settings,
            metrics=metrics,
            started=started,
            metrics_port=settings.metrics_port if settings.allow_metrics else None,
            grpc=settings.grpc_settings(),
        )
    )


command = settings_command(
    "predictor",
    PredictorSettings,
    run,
    help="Serve the PyTorch models of a Triton model repository over the V2 protocol.",
    no_effect=NO_EFFECT,
)


def main() -> None:
    """The command line."""
    command()


if __name__ == "__main__":
    main()
