"""What a load request may bring along instead of the repository's: a configuration, and files.

Files go into a temporary folder of the model's own, readable by this user alone, which lives as long as the override.
Their names are checked, so that none can leave it.  Knows no transport.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from google.protobuf import json_format, text_format

from oip import json_text
from oip.errors import InvalidArgument
from oip.proto import ModelConfig as ModelConfigMessage
from torchscript_predictor.model_config import FILE
from torchscript_predictor.repository import ModelFolder, check_model_name

MAX_FILES = 256
MAX_DEPTH = 8

_PART = re.compile(r"[^/\\\x00-\x1f]{1,255}")
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Override:
    """A configuration as text, and the folder of the files where there are any.  `number` tells overrides apart."""

    number: int
    config: str
    folder: Path | None = None

    def applied(self, name: str, folder: ModelFolder | None) -> ModelFolder | None:
        """The model's folder with this override; None where it brings no files and there is no folder."""
        if self.folder is not None:
            return ModelFolder(name, self.folder / name, self.folder, given_config=self.config)
        return folder and replace(folder, given_config=self.config)

    def discard(self) -> None:
        """Delete the files."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def make_override(name: str, config: str | None, files: Mapping[str, bytes]) -> Override | None:
    """The override that a load request brings; None if it brings none.  Writes the files.

    Raises:
        InvalidArgument: the model's name, the configuration or a file's name is none; or files come without one.
    """
    if config is None and not files:
        return None
    if not check_model_name(name):
        raise InvalidArgument(f"{name[:128]!r} is no model name; it has 1 to 128 letters, digits and any of _ . -")
    if config is None:
        raise InvalidArgument(
            "load parameter 'config' must be specified when files are given; send the model configuration as JSON"
        )
    text = config_from_json(config)
    if len(files) > MAX_FILES:
        raise InvalidArgument(f"a load may bring at most {MAX_FILES} files, got {len(files)}")
    places = {_checked(path): content for path, content in files.items()}
    if not places:
        return Override(next(_numbers), text)
    override = Override(next(_numbers), text, Path(tempfile.mkdtemp(prefix="tandem-model-")).resolve())
    try:
        assert override.folder is not None
        for path, content in places.items():
            target = override.folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except OSError as error:
        override.discard()
        raise InvalidArgument(f"the files of the load cannot be written: {error.strerror}") from None
    return override


def config_from_json(text: str) -> str:
    """A model configuration in JSON as the text of a `config.pbtxt`.

    Raises:
        InvalidArgument: it is no JSON, or no model configuration.
    """
    try:
        document = json_text.loads(text.encode(errors="replace"))
        if not isinstance(document, dict):
            raise InvalidArgument("it must be a JSON object")
        message = json_format.ParseDict(document, ModelConfigMessage(), max_recursion_depth=50)
    except (json_format.ParseError, InvalidArgument) as error:
        raise InvalidArgument(f"load parameter 'config' is no model configuration: {str(error)[:500]}") from None
    return str(text_format.MessageToString(message))


def _checked(path: str) -> Path:
    parts = path.split("/")
    if len(parts) > MAX_DEPTH or not all(_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise InvalidArgument(
            f"load parameter 'file:{path[:100]}' must be 'file:<version>/<name>': a path inside the model's folder, "
            "without . and .."
        )
    if parts == [FILE]:
        raise InvalidArgument(f"load parameter 'file:{FILE}' is the load parameter 'config'; send it there")
    return Path(*parts)
