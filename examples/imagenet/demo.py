"""The demonstration behind `make demo` and `make serve`.

    python examples/imagenet/demo.py            export, start both processes, send a photo, print, stop
    python examples/imagenet/demo.py --serve    export, start both processes on the default ports, stay

Writes its artefacts to `.demo/` in the working folder; a second run finds them there.
"""

import argparse
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console

from tandem import export, predict
from tandem.up import free_port

HERE = Path(__file__).parent
PHOTO = HERE.parent / "photos" / "coffee.png"
DEMO = Path(".demo")
NAME = "efficientnet_lite0"
READY_SECONDS = 120


def prepare(console: Console) -> None:
    """The model repository, the transformer's configuration and its labels."""
    repository = DEMO / "models"
    if not (repository / NAME / "1" / "model.pt").exists():
        console.print(f"exporting {NAME} with its ImageNet weights ...")
        sys.path.insert(0, str(HERE))
        export.export(
            export.load_factory("model:create"),
            repository,
            NAME,
            [3, 224, 224],
            method="trace",
            report=lambda line: console.print(f"  {line}"),
        )
    labels = DEMO / "labels.txt"
    if not labels.exists():
        from torchvision.models import MobileNet_V2_Weights  # the class names; nothing is downloaded for them

        labels.write_text("\n".join(MobileNet_V2_Weights.DEFAULT.meta["categories"]) + "\n", encoding="utf-8")
    shutil.copyfile(HERE / "transformer.yaml", DEMO / "transformer.yaml")


def up(*arguments: str) -> subprocess.Popen[bytes]:
    """`tandem up` over the artefacts, as a child."""
    command = ["up", str(DEMO / "transformer.yaml"), "--model-repository", str(DEMO / "models"), *arguments]
    return subprocess.Popen([sys.executable, "-m", "tandem", *command])  # noqa: S603


def wait_until_ready(url: str, pair: subprocess.Popen[bytes]) -> None:
    """Return once the service is ready; exits if it ends or takes too long."""
    end = time.monotonic() + READY_SECONDS
    pause = threading.Event()
    while time.monotonic() < end and pair.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            pause.wait(0.05)
    sys.exit(f"the service did not become ready within {READY_SECONDS} s; its log is above")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="stay up on the default ports")
    arguments = parser.parse_args()
    console = Console()
    prepare(console)
    if arguments.serve:
        console.print("in another terminal:")
        console.print(
            f'  (printf \'{{"instances": [{{"image_bytes": {{"b64": "\'; base64 -w0 {PHOTO.relative_to(Path.cwd())}; '
            "printf '\"}}]}') |\n"
            f"  curl -d @- http://127.0.0.1:8080/v1/models/{NAME}:predict",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        with up() as pair:
            try:
                return pair.wait()
            except KeyboardInterrupt:
                pair.terminate()
                return pair.wait()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with up(
        "--http-port", str(port), "--predictor-http-port", "0", "--predictor-grpc-port", "0", "--metrics-port", "0"
    ) as pair:
        try:
            wait_until_ready(url, pair)
            address = predict.predict_url(url, NAME)
            predict.send(address, [PHOTO.read_bytes()], "image_bytes.b64")  # the first request warms the path
            answer, stages = predict.send(address, [PHOTO.read_bytes()], "image_bytes.b64")
        finally:
            pair.terminate()
            pair.wait()
    console.print()
    predict.print_answer(console, [PHOTO.name], answer)
    console.print()
    predict.print_times(console, stages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
