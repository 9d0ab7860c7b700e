"""The rules of the layout that no tool checks by itself."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("protocol", "transformers", "predictor", "cli")
PACKAGES = {
    "protocol": "oip",
    "transformers": "kserve_transformer",
    "predictor": "torchscript_predictor",
    "cli": "tandem",
}


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_a_source_root_is_no_package(root: str) -> None:
    """With an __init__.py, `transformers` would shadow Hugging Face's package for whoever runs from the root."""
    assert not (ROOT / root / "__init__.py").exists()


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_nothing_in_a_source_root_bears_a_librarys_name(root: str) -> None:
    folders = {path.name for path in (ROOT / root).iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == {PACKAGES[root]}
    libraries = {name for name in metadata.packages_distributions() if name not in PACKAGES.values()}
    assert not folders & libraries


def test_no_package_under_tests() -> None:
    """A tests/grpc/__init__.py would shadow grpc."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("kserve_transformer.__main__", ("torch", "kserve", "pandas", "grpc", "torchscript_predictor", "tandem")),
        ("torchscript_predictor.__main__", ("torch", "kserve", "pandas", "PIL", "kserve_transformer", "tandem")),
        ("oip.server.service", ("torch", "kserve", "PIL", "pandas", "grpc")),
        ("tandem.__main__", ("torch", "kserve", "PIL", "aiohttp", "pydantic")),
    ],
)
def test_importing_a_process_loads_nothing_foreign(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*({forbidden!r} and [m for m in {forbidden!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_descriptors_are_the_installed_tritonclients() -> None:
    """In a process of its own: tritonclient's generated modules and kserve's cannot share one."""
    check = [sys.executable, str(ROOT / "protocol/oip/proto/regenerate.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
