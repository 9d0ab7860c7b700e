"""`python -m kserve_transformer [CONFIG.yaml | module:Class]...`: the transformer process.

Joins files, flags and classes into transformers and serves them.  Knows no route.
"""

import difflib
import importlib
import logging
import os
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kserve_transformer.config import ConfigError, TransformerConfig, load_config, parse_config
from kserve_transformer.data_plane import TransformerDataPlane
from kserve_transformer.predictor import State, describe
from kserve_transformer.settings import NO_EFFECT, OVERRIDES, TransformerSettings
from kserve_transformer.transformer import Transformer
from oip.server.flags import settings_command
from oip.server.metrics import ServerMetrics
from oip.server.service import Service, serve

logger = logging.getLogger("tandem.transformer")

MODELS_FOLDER = Path("/mnt/models")
"""Where KServe's storage initializer puts a model's files."""

CONFIG_NAME = "transformer.yaml"


def find_configs(arguments: tuple[str, ...], environment: Mapping[str, str], model_name: str | None) -> list[Path]:
    """The YAML files to serve: the arguments', else `TANDEM_CONFIG`'s, else the model folder's; perhaps none."""
    given = [Path(argument) for argument in arguments if not _is_class(argument)]
    if given:
        return given
    if environment.get("TANDEM_CONFIG"):
        return [Path(environment["TANDEM_CONFIG"])]
    folders = [MODELS_FOLDER / model_name] if model_name else []
    return [path for folder in (*folders, MODELS_FOLDER) if (path := folder / CONFIG_NAME).is_file()][:1]


def build(arguments: tuple[str, ...], settings: TransformerSettings) -> list[Transformer]:
    """The transformers that the command line asks for.

    Raises:
        click.UsageError: a file or class cannot be used; the message says which and why.
    """
    classes = [argument for argument in arguments if _is_class(argument)]
    paths = find_configs(arguments, os.environ, settings.model_name)
    if len(classes) > 1 or (classes and len(paths) > 1):
        raise click.UsageError(
            "give one class, with at most one file; several files may name theirs under 'transformer'"
        )
    if len(paths) > 1 and settings.model_name:
        raise click.UsageError("--model-name names one model, but several files were given")
    if not paths and not classes:
        raise click.UsageError(
            f"no configuration: give a YAML file, set TANDEM_CONFIG, or put {CONFIG_NAME} into {MODELS_FOLDER}"
        )
    overrides = {key: value for flag, key in OVERRIDES.items() if (value := getattr(settings, flag)) is not None}
    try:
        configs = [(load_config(path, overrides), path.parent) for path in paths] or [
            (parse_config("", "the command line", overrides), Path())
        ]
        transformers = [
            _transformer(config, classes[0] if classes else config.transformer, folder) for config, folder in configs
        ]
        for transformer in transformers:
            transformer.predictor.address  # noqa: B018  (raises ValueError for a host that is none)
    except (ConfigError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    names = [transformer.name for transformer in transformers]
    if len(set(names)) < len(names):
        raise click.UsageError(f"two files have the same model_name among {', '.join(names)}")
    return transformers


def _transformer(config: TransformerConfig, class_name: str | None, folder: Path) -> Transformer:
    if class_name is None:
        return Transformer(config)
    module_name, _, attribute = class_name.partition(":")
    for place in (str(folder.resolve()), str(Path.cwd())):
        if place not in sys.path:
            sys.path.insert(0, place)
    try:
        found: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{class_name}: cannot be imported: {error}") from None
    if isinstance(found, type) and issubclass(found, Transformer):
        return found(config)
    from kserve_transformer import stock  # imports kserve, which costs 129 MB: only for those who bring its classes

    return stock.StockTransformer(config, stock.model_class(found, class_name))


def _is_class(argument: str) -> bool:
    return ":" in argument and not argument.endswith((".yaml", ".yml"))


def _file_layer(arguments: tuple[str, ...], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `server` sections of the files."""
    layer: dict[str, Any] = {}
    try:
        for path in find_configs(arguments, os.environ, given.get("model_name")):
            server = load_config(path).server
            for key in server:
                if key not in TransformerSettings.model_fields:
                    near = difflib.get_close_matches(key, TransformerSettings.model_fields, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else "see --help for those there are"
                    raise ConfigError(f"{path}: server.{key}: unknown setting; {hint}")
            layer |= server
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    return layer


def run(settings: TransformerSettings, arguments: tuple[str, ...]) -> None:
    """Serve until told to stop."""
    transformers = build(arguments, settings)
    metrics = ServerMetrics()
    threads = settings.decode_threads or len(os.sched_getaffinity(0))
    plane = TransformerDataPlane(transformers, threads=threads, metrics=metrics)
    tls = None
    if settings.ssl_certfile:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            tls.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
        except OSError as error:
            raise click.UsageError(
                f"--ssl-certfile, --ssl-keyfile: cannot be used: {error.strerror or error}"
            ) from None

    async def started(service: Service) -> int | None:
        logger.info("transformer at %s, %d decode threads", " and ".join(service.addresses), threads)
        for transformer in transformers:
            state = await transformer.predictor.decided()
            if state is State.MISMATCH and settings.exit_on_mismatch:
                logger.error("model %s: %s", transformer.name, transformer.predictor.reason)
                return 1
            logger.info(
                "model %s: predictor %s, %s, hand-off %s: %s",
                transformer.name,
                *(describe(transformer.predictor)[key] for key in ("address", "state")),
                transformer.predictor.hand_off,
                describe(transformer.predictor)["contract"],
            )
        return None

    sys.exit(serve(lambda: plane, settings, metrics=metrics, routes=plane.routes, started=started, tls=tls))


command = settings_command(
    "transformer",
    TransformerSettings,
    run,
    help="Serve transformers: YAML files, one model each, or a class as module:Class.",
    argument="config",
    no_effect=NO_EFFECT,
    file_layer=_file_layer,
)


if __name__ == "__main__":
    command.main(prog_name="python -m kserve_transformer")
