"""A transformer behind its real routes for tests, pictures to send it, and a plain HTTP caller.

Knows `kserve_transformer` and the fake predictor of `serving`.
"""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import FunctionPlane, Running, serving
from wire import Reply, call

from kserve_transformer.config import parse_config
from kserve_transformer.data_plane import TransformerDataPlane
from kserve_transformer.transformer import Transformer
from oip.messages import TensorMetadata
from oip.server.metrics import ServerMetrics
from oip.server.settings import ServerSettings


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The file that holds an image."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def plain(value: int, width: int = 4, height: int = 4) -> str:
    """A grey picture of one level, in base64."""
    return b64(encoded(Image.new("RGB", (width, height), (value, value, value))))


def picture_plane(
    compute: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    max_batch_size: int = 8,
    classes: int = 4,
    side: int = 4,
    name: str = "m",
) -> FunctionPlane:
    """A predictor of [N, 3, side, side] pictures; by default it answers the first values of the first channel."""
    first = compute or (lambda x: np.ascontiguousarray(x[:, 0].reshape(len(x), -1)[:, :classes]))
    return FunctionPlane(
        lambda arrays: {"OUTPUT__0": first(arrays["INPUT__0"])},
        (TensorMetadata("INPUT__0", "FP32", (-1, 3, side, side)),),
        (TensorMetadata("OUTPUT__0", "FP32", (-1, classes)),),
        max_batch_size,
        name,
    )


def make(host: str, yaml: str = "", transformer: type[Transformer] = Transformer) -> Transformer:
    """A transformer named m with 4x4 pictures, unless the YAML has an image section of its own."""
    image = "" if "image:" in yaml else "image: {resize: {height: 4, width: 4}}\n"
    text = "model_name: m\n" + image + yaml
    return transformer(parse_config(text, overrides={"predictor.host": host}))


@dataclass
class Serving:
    """A transformer that serves."""

    running: Running
    transformer: Transformer

    def get(self, path: str) -> Reply:
        return call(self.running.url, "GET", path)

    def post(self, payload: Any, headers: Mapping[str, str] = {}, model: str = "m") -> Reply:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        sent = {"Content-Type": "application/json", **headers}
        return call(self.running.url, "POST", f"/v1/models/{model}:predict", body, sent)

    def predict(self, *instances: Any, **headers: str) -> Reply:
        return self.post({"instances": list(instances)}, headers)

    def wait(self) -> None:
        """Until the predictor has been judged."""
        decided = self.transformer.predictor.decided()
        asyncio.run_coroutine_threadsafe(decided, self.running.loop).result(20)


@contextmanager
def transforming(
    transformer: Transformer, *, wait: bool = True, threads: int = 2, **settings: Any
) -> Iterator[Serving]:
    """The transformer's V1 and V2 routes on a free port."""
    metrics = ServerMetrics()
    plane = TransformerDataPlane([transformer], threads=threads, metrics=metrics)
    chosen = ServerSettings(http_port=0, http_address="127.0.0.1", **settings)
    with serving(plane, chosen, metrics=metrics, routes=plane.routes) as running:
        started = Serving(running, transformer)
        if wait:
            started.wait()
        yield started


@contextmanager
def pair(
    yaml: str = "",
    transformer: type[Transformer] = Transformer,
    plane: FunctionPlane | None = None,
    **settings: Any,
) -> Iterator[tuple[Serving, FunctionPlane]]:
    """A fake predictor and a transformer in front of it."""
    plane = plane or picture_plane()
    with serving(plane) as predictor, transforming(make(predictor.url, yaml, transformer), **settings) as served:
        yield served, plane


def shared(path: str) -> Path:
    """A file or folder of the data that some checkouts have beside them; the test is skipped where it is absent."""
    root = Path(__file__).resolve().parents[2]
    for place in (root / "shared", root.parent / "shared"):
        if (place / path).exists():
            return place / path
    pytest.skip(f"there is no shared/{path}")
