"""`tandem predict URL PHOTO...`: photos to a running service, answers and times to the terminal.

A small V1 client; knows no picture format.
"""

import base64
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.table import Table

from oip.timing import parse_header

TIMEOUT_SECONDS = 60
BAR_WIDTH = 30


class Refused(Exception):
    """The service did not answer with predictions; the message is for the person at the terminal."""


def predict_url(url: str, model: str | None) -> str:
    """The full address of a model's predict route.

    Raises:
        Refused: no model is named and the service has none or several.
    """
    if urlsplit(url).path.rstrip("/").endswith(":predict"):
        return url
    base = url.rstrip("/")
    if model is None:
        names = _exchange(urllib.request.Request(f"{base}/v1/models"))[0]["models"]  # noqa: S310  (scheme checked)
        if len(names) != 1:
            raise Refused(f"{base} serves {', '.join(names) or 'no model'}; name one with --model")
        model = names[0]
    return f"{base}/v1/models/{model}:predict"


def request_body(photos: Sequence[bytes], field: str) -> bytes:
    """A V1 body with one instance a photo, its base64 under the dotted `field`."""
    instances = []
    for photo in photos:
        instance: Any = base64.b64encode(photo).decode()
        for key in reversed(field.split(".")):
            instance = {key: instance}
        instances.append(instance)
    return json.dumps({"instances": instances}).encode()


def send(url: str, photos: Sequence[bytes], field: str) -> tuple[Any, Mapping[str, tuple[float, str]]]:
    """The answer and where its time went.

    Raises:
        Refused: no answer, or an error.
    """
    headers = {"Content-Type": "application/json"}
    return _exchange(urllib.request.Request(url, request_body(photos, field), headers))  # noqa: S310  (scheme checked)


def _exchange(request: urllib.request.Request) -> tuple[Any, Mapping[str, tuple[float, str]]]:
    if urlsplit(request.full_url).scheme not in ("http", "https"):
        raise Refused(f"{request.full_url} is no address of a service; use http://host:port")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            return json.loads(response.read()), parse_header(response.headers.get("Server-Timing", ""))
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")
        try:
            document = json.loads(text)
            where = f" (photo {document['instance'] + 1})" if "instance" in document else ""
            raise Refused(f"{error.code}{where}: {document['error']}") from None
        except (ValueError, KeyError, TypeError):
            raise Refused(f"{error.code}: {text[:300]}") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{request.full_url}: {getattr(error, 'reason', error)}") from None


def print_answer(console: Console, names: Sequence[str], answer: Any) -> None:
    """Each photo's classes as a table; any other answer as JSON."""
    predictions = answer.get("predictions") if isinstance(answer, dict) else None
    for name, prediction in zip(names, predictions or (), strict=False):
        if not _is_classes(prediction):
            console.print(f"{name}: {json.dumps(prediction)}", soft_wrap=True)
            continue
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        table.add_column("label", style="bold")
        table.add_column("score", justify="right")
        for row in prediction:
            table.add_row(str(row["label"]), f"{row['score']:.3f}")
        console.print(table)
    if not predictions:
        console.print_json(json.dumps(answer))


def print_times(console: Console, stages: Mapping[str, tuple[float, str]]) -> None:
    """Where the time went, stage by stage, as bars."""
    total = stages.get("total", (0.0, ""))[0]
    if not total:
        return
    table = Table(title=f"where {total:.1f} ms went", title_justify="left", box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("ms", justify="right")
    table.add_column("")
    for name, (milliseconds, description) in stages.items():
        if name != "total":
            bar = "█" * round(BAR_WIDTH * milliseconds / total)
            table.add_row(name, f"{milliseconds:.2f}", f"{bar} {description}")
    console.print(table)


def _is_classes(prediction: Any) -> bool:
    return (
        isinstance(prediction, list)
        and bool(prediction)
        and all(isinstance(row, dict) and {"label", "score"} <= row.keys() for row in prediction)
    )


@click.command("predict", context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.argument("url")
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Which model, where the service has several.")
@click.option("--field", default="image_bytes.b64", show_default=True, help="Where in an instance the picture goes.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")
def command(url: str, photos: Sequence[Path], model: str | None, field: str, as_json: bool) -> None:
    """Send PHOTOS to the service at URL (http://host:port, or a full :predict address)."""
    console = Console()
    try:
        answer, stages = send(predict_url(url, model), [photo.read_bytes() for photo in photos], field)
    except Refused as refusal:
        Console(stderr=True).print(f"[red]refused[/red] {refusal}", highlight=False, soft_wrap=True)
        sys.exit(1)
    if as_json:
        print(json.dumps(answer))
        return
    print_answer(console, [photo.name for photo in photos], answer)
    print_times(console, stages)
