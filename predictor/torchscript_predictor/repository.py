"""The model repository on disk: `<repository>/<model>/config.pbtxt` and `<model>/<version>/<file>`.

Finds folders and reads small files; decides nothing about them.  Its errors name models and files as
`<model>/<file>`, never by their place on the machine.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
MAX_CONFIG_BYTES = 1024 * 1024


class RepositoryError(ValueError):
    """The repository, or a model in it, is not laid out as it must be; the message says how."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model's folder, in the repository `root`."""

    name: str
    path: Path
    root: Path

    def config_text(self) -> str:
        """The text of `config.pbtxt`.

        Raises:
            RepositoryError: there is none, or it is no readable UTF-8 text of at most 1 MiB.
        """
        file = f"{self.name}/config.pbtxt"
        try:
            with self._confined(self.path / "config.pbtxt", file).open("rb") as stream:
                content = stream.read(MAX_CONFIG_BYTES + 1)
        except FileNotFoundError:
            raise RepositoryError(f"{file} does not exist; every model needs one") from None
        except OSError as error:
            raise RepositoryError(f"{file} cannot be read: {error.strerror}") from None
        if len(content) > MAX_CONFIG_BYTES:
            raise RepositoryError(f"{file} is longer than {MAX_CONFIG_BYTES} bytes")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RepositoryError(
                f"{file} is not UTF-8 text: byte {error.start} is {content[error.start]:#04x}"
            ) from None

    def versions(self) -> list[int]:
        """The numbers of the version folders, ascending.  Other folders are ignored."""
        numbers = []
        for entry in self.path.iterdir():
            if _VERSION.fullmatch(entry.name) and entry.is_dir():
                numbers.append(int(entry.name))
            elif entry.name.isdecimal() and entry.is_dir():
                logger.warning(
                    "%s/%s is ignored: a version is a number from 1 without leading zeros", self.name, entry.name
                )
        return sorted(numbers)

    def model_file(self, version: int, filename: str) -> Path:
        """The file that holds a version.

        Raises:
            RepositoryError: it does not exist, is no file, or lies outside the repository.
        """
        file = f"{self.name}/{version}/{filename}"
        path = self._confined(self.path / str(version) / filename, file)
        if not path.is_file():
            raise RepositoryError(
                f"{file} does not exist; put the TorchScript file there, or set default_model_filename"
            )
        return path

    def warmup_file(self, file: str) -> Path:
        """A file under the model's folder `warmup`; raises RepositoryError as `model_file` does."""
        name = f"{self.name}/warmup/{file}"
        path = self._confined(self.path / "warmup" / file, name)
        if not path.is_file():
            raise RepositoryError(f"{name} does not exist")
        return path

    def _confined(self, path: Path, name: str) -> Path:
        if not path.resolve().is_relative_to(self.root):
            raise RepositoryError(f"{name} leads out of the model repository; put the files themselves there")
        return path


class ModelRepository:
    """One or several folders of models, seen as one."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """
        Raises:
            RepositoryError: a folder does not exist, is a file, or is itself a model.
        """
        for folder in folders:
            if not folder.is_dir():
                raise RepositoryError(f"model repository {folder} {_what_is_wrong(folder)}")
            if (folder / "config.pbtxt").is_file():
                raise RepositoryError(
                    f"model repository {folder} is itself a model; give the folder that holds it, as in "
                    "<repository>/<model>/config.pbtxt"
                )
        self._folders = [folder.resolve() for folder in folders]

    def models(self) -> dict[str, list[ModelFolder]]:
        """All model folders by name, sorted; a name that several repositories hold has several."""
        found: dict[str, list[ModelFolder]] = {}
        for root in self._folders:
            for entry in sorted(root.iterdir()):
                if entry.name.startswith(".") or not entry.is_dir():
                    continue
                if not _MODEL_NAME.fullmatch(entry.name):
                    logger.warning(
                        "the folder %r is ignored: a model's name is 1 to 128 letters, digits and any of _ . -",
                        entry.name,
                    )
                    continue
                found.setdefault(entry.name, []).append(ModelFolder(entry.name, entry, root))
        return dict(sorted(found.items()))

    def empty_reason(self) -> str:
        """What to tell an operator whose repository holds no model."""
        folders = ", ".join(str(root) for root in self._folders)
        return f"model repository {folders} holds no model; expected <repository>/<model>/config.pbtxt"


def _what_is_wrong(folder: Path) -> str:
    return "is a file; give a folder that holds model folders" if folder.exists() else "does not exist"
