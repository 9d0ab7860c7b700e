"""The configuration of a model in the repository, from all that is there: `config.pbtxt`, `schema.json`, the model.

Joins the folder, the parser and the backend that can describe a model; decides nothing about fields.
"""

import dataclasses
import logging

from torchscript_predictor.backends import Backend
from torchscript_predictor.model_config import (
    ConfigError,
    Description,
    ModelConfig,
    config_text,
    parse_model_config,
)
from torchscript_predictor.repository import ModelFolder
from torchscript_predictor.schema_json import SchemaError, read_schema
from torchscript_predictor.version_policy import VersionPolicy, choose_versions

logger = logging.getLogger(__name__)


def read_model_config(folder: ModelFolder, backend: Backend) -> ModelConfig:
    """The configuration of the model in a folder; inputs and outputs that nobody configured are found out.

    Raises:
        RepositoryError: a file is missing or cannot be read.
        ConfigError: the configuration or the schema cannot be served.
        LoadError: the inputs and outputs could not be found out.
    """
    text, schema = folder.config_text(), folder.schema()
    versions = folder.versions()
    files = folder.files(versions[-1]) if versions else frozenset()
    derived = []

    def describe(draft: ModelConfig) -> Description:
        chosen = choose_versions(draft.version_policy, versions).versions[-1:] or versions[-1:]
        if not chosen:
            raise folder.no_version(draft.model_filename)
        derived.append(draft)
        return backend.describe(folder.model_file(chosen[0], draft.model_filename), draft)

    try:
        config = parse_model_config(
            text,
            folder.name,
            gpu_count=backend.gpu_count(),
            files=files,
            rename=folder.renamed,
            amend=(lambda message: []) if schema is None else read_schema(*schema).amend,
            describe=describe,
        )
    except SchemaError as error:
        raise ConfigError(str(error)) from None
    if derived:
        logger.info(
            "model %s: no input and output is configured; it is served as with this config.pbtxt:\n%s",
            config.name,
            config_text(config).rstrip(),
        )
    return _newest_alone(folder, config, versions) if folder.alone else config


def _newest_alone(folder: ModelFolder, config: ModelConfig, versions: list[int]) -> ModelConfig:
    """ModelMesh's rule for a path that is one model: one version of it, as versions are told apart by paths."""
    chosen = choose_versions(config.version_policy, versions).versions
    if len(chosen) > 1:
        warning = (
            f"model {folder.name}: only version {chosen[-1]} is served, because the path given is the model itself; "
            "give the folder above as --model-repository for the others"
        )
        return dataclasses.replace(
            config,
            version_policy=VersionPolicy("specific", versions=chosen[-1:]),
            warnings=(*config.warnings, warning),
        )
    return config
