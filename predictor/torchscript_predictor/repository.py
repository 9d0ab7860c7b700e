"""The model repository on disk, in each of the layouts that people have.

    <repository>/<model>/config.pbtxt, <model>/<version>/<file>      Triton's
    <model>/<version>/<file>                                         the same without a configuration
    <model>/model.pt, with schema.json or without                    ModelMesh's simple layout; any one model file
    <path>                                                           the path itself is one model, in any of these

Finds folders and reads small files; decides nothing about them.  Its errors name models and files as
`<model>/<file>`, never by their place on the machine.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchscript_predictor import schema_json
from torchscript_predictor.model_config import FILE, declared_name
from torchscript_predictor.runtimes import Runtime

logger = logging.getLogger(__name__)

_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
MAX_CONFIG_BYTES = 1024 * 1024
_MODEL_FILES = frozenset(runtime.value for runtime in Runtime)
_MODEL_SUFFIXES = (".pt", ".pth", ".pt2")


class RepositoryError(ValueError):
    """The repository, or a model in it, is not laid out as it must be; the message says how."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model's folder, in the repository `root`.

    `file` is the model's file where it lies in the folder itself; it then counts as version 1.  `alone`: somebody
    pointed at this model, not at a repository.  `renamed`: the name counts, whatever the configuration says.
    `given_config`: a configuration that somebody gave in place of what lies in the folder.
    """

    name: str
    path: Path
    root: Path
    file: str = ""
    alone: bool = False
    renamed: bool = False
    given_config: str | None = None

    def config_text(self) -> str:
        """The text of `config.pbtxt`, "" where there is none.

        Raises:
            RepositoryError: it is no readable UTF-8 text of at most 1 MiB.
        """
        return (self._text(FILE) or "") if self.given_config is None else self.given_config

    def schema(self) -> tuple[str, str] | None:
        """The text of `schema.json` and what to call it; None where there is none.  Raises as `config_text` does."""
        if self.given_config is not None:
            return None
        for file in schema_json.FILES:
            text = self._text(file)
            if text is not None:
                return text, f"{self.name}/{file}"
        return None

    def labels(self, filename: str) -> tuple[str, ...]:
        """The lines of a label file.

        Raises:
            RepositoryError: it is not in the model's folder, or cannot be read as `config_text` says.
        """
        path = Path(filename)
        if path.is_absolute() or ".." in path.parts:  # another model's files are no labels of this one
            raise RepositoryError(f"label_filename of model '{self.name}' leads out of the model's folder")
        text = self._text(filename)
        if text is None:
            raise RepositoryError(f"{self.name}/{filename} does not exist; put the labels there, one a line")
        return tuple(line.strip() for line in text.splitlines())

    def _text(self, filename: str) -> str | None:
        file = f"{self.name}/{filename}"
        try:
            with self._confined(self.path / filename, file).open("rb") as stream:
                content = stream.read(MAX_CONFIG_BYTES + 1)
        except FileNotFoundError:
            return None
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
        if self.file:
            return [1]
        numbers = []
        for entry in self.path.iterdir():
            if _VERSION.fullmatch(entry.name) and entry.is_dir():
                numbers.append(int(entry.name))
            elif entry.name.isdecimal() and entry.is_dir():
                logger.warning(
                    "%s/%s is ignored: a version is a number from 1 without leading zeros", self.name, entry.name
                )
        return sorted(numbers)

    def files(self, version: int) -> frozenset[str]:
        """The names of a version's files.  A single file of another name than usual counts as the usual one."""
        if self.file:
            return frozenset({_usual_name(self.file)})
        return frozenset(entry.name for entry in (self.path / str(version)).iterdir() if entry.is_file())

    def model_file(self, version: int, filename: str) -> Path:
        """The file that holds a version.

        Raises:
            RepositoryError: it does not exist, is no file, or lies outside the repository.
        """
        if self.file and filename == _usual_name(self.file):
            return self._confined(self.path / self.file, f"{self.name}/{self.file}")
        file = f"{self.name}/{filename}" if self.file else f"{self.name}/{version}/{filename}"
        path = self._confined(self.path / filename if self.file else self.path / str(version) / filename, file)
        if not path.is_file():
            raise RepositoryError(f"{file} does not exist; put the model's file there, or set default_model_filename")
        return path

    def no_version(self, filename: str) -> RepositoryError:
        """What to raise where there is no version at all."""
        return RepositoryError(
            f"no version of model '{self.name}' is to be served: there is no numbered folder; expected "
            f"{self.name}/<version>/{filename}"
        )

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
    """One or several folders of models, seen as one.  A path that itself is one model counts as a folder of it."""

    def __init__(self, folders: Sequence[Path], model_name: str | None = None) -> None:
        """
        Args:
            model_name: what to call the model where a path itself is one.

        Raises:
            RepositoryError: a path does not exist, is no model and no folder; or the name names nothing.
        """
        for folder in folders:
            if not folder.exists():
                raise RepositoryError(f"model repository {folder} does not exist")
            if not folder.is_dir() and folder.name not in _MODEL_FILES and folder.suffix not in _MODEL_SUFFIXES:
                raise RepositoryError(
                    f"model repository {folder} is a file; give a folder that holds model folders, or one model's file "
                    f"({', '.join(sorted(_MODEL_FILES))})"
                )
        alone = [folder for folder in folders if is_model(folder)]
        if model_name is not None:
            if len(alone) != 1:
                raise RepositoryError(
                    f"--model-name {model_name} needs exactly one --model-repository that itself is a model, there are "
                    f"{len(alone)}; in a repository, models are called by their folders"
                )
            if not _MODEL_NAME.fullmatch(model_name):
                raise RepositoryError(f"--model-name {model_name!r} is no model name: {_NAME_RULE}")
        self._folders = [folder.resolve() for folder in folders if folder not in alone]
        self._alone = [_single_model(folder, model_name) for folder in alone]

    def models(self) -> dict[str, list[ModelFolder]]:
        """All model folders by name, sorted; a name that several repositories hold has several."""
        found: dict[str, list[ModelFolder]] = {}
        for folder in self._alone:
            found.setdefault(folder.name, []).append(folder)
        for root in self._folders:
            for entry in sorted(root.iterdir()):
                if entry.name.startswith(".") or not entry.is_dir():
                    continue
                if not _MODEL_NAME.fullmatch(entry.name):
                    logger.warning("the folder %r is ignored: %s", entry.name, _NAME_RULE)
                    continue
                found.setdefault(entry.name, []).append(ModelFolder(entry.name, entry, root, _bare_file(entry)))
        return dict(sorted(found.items()))

    def empty_reason(self) -> str:
        """What to tell an operator whose repository holds no model."""
        folders = ", ".join(str(root) for root in self._folders)
        return f"model repository {folders} holds no model; expected <repository>/<model>/<version>/model.pt"


_NAME_RULE = "a model's name is 1 to 128 letters, digits and any of _ . -"


def check_model_name(name: str) -> bool:
    """Whether a model may be called so."""
    return bool(_MODEL_NAME.fullmatch(name)) and not name.startswith(".")


def is_model(path: Path) -> bool:
    """Whether a path is one model by itself, and no folder of models."""
    if not path.is_dir():
        return True
    if (path / FILE).is_file() or _bare_file(path):
        return True
    return any(any((entry / file).is_file() for file in _MODEL_FILES) for entry in _version_folders(path))


def _version_folders(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir()]


def _bare_file(path: Path) -> str:
    """The model's file in a folder without version folders: of a usual name, else the only one that can be it."""
    if _version_folders(path):
        return ""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    usual = [runtime.value for runtime in Runtime if runtime.value in names]
    likely = [name for name in names if Path(name).suffix in _MODEL_SUFFIXES]
    if usual:
        return usual[0]
    return likely[0] if len(likely) == 1 else ""


def _usual_name(file: str) -> str:
    """What a bare file is linked as in ModelMesh: `model` with the suffix of its kind."""
    if file in _MODEL_FILES:
        return file
    return Runtime.PT2.value if file.endswith(".pt2") else Runtime.TORCHSCRIPT.value


def _single_model(path: Path, model_name: str | None) -> ModelFolder:
    path = path.resolve()
    folder, file = (path, _bare_file(path)) if path.is_dir() else (path.parent, path.name)
    unnamed = ModelFolder(folder.name, folder, folder, file, alone=True, renamed=True)
    if model_name is None:
        named_by_file = not path.is_dir() and file not in _MODEL_FILES
        try:
            model_name = declared_name(unnamed.config_text()) if path.is_dir() else ""
        except RepositoryError:  # said again when the model loads
            model_name = ""
        model_name = model_name or (Path(file).stem if named_by_file else folder.name)
    if not _MODEL_NAME.fullmatch(model_name):
        raise RepositoryError(f"{model_name!r} is no model name: {_NAME_RULE}; give one with --model-name")
    return replace(unnamed, name=model_name)
