"""Our transformer under the stock `kserve.ModelServer`, in a process of its own."""

import json
from pathlib import Path

from processes import call, free_port, process, wait_until
from serving import serving
from transforming import picture_plane, plain

from oip.server.settings import ServerSettings

SERVER = """
import sys
from pathlib import Path

from kserve import ModelServer

from kserve_transformer import Transformer, load_config
from kserve_transformer.bridge import kserve_model

ModelServer().start([kserve_model(Transformer(load_config(Path(sys.argv[1]))))])
"""


def test_stock_model_server(tmp_path: Path) -> None:
    port, predictor_port = free_port(), free_port()
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "transformer.yaml").write_text(
        f"model_name: m\npredictor: {{host: '127.0.0.1:{predictor_port}', retries: 0}}\nimage: {{center_crop: 4}}\n"
    )
    flags = [f"--http_port={port}", "--enable_grpc=false"]
    arguments = [str(tmp_path / "server.py"), str(tmp_path / "transformer.yaml"), *flags]

    def post(*instances: object) -> tuple[int, dict[str, object]]:
        body = json.dumps({"instances": [*instances]}).encode()
        reply = call(port, "POST", "/v1/models/m:predict", body, {"Content-Type": "application/json"})
        return reply.status, reply.json

    good = {"b64": plain(255)}
    settings = ServerSettings(http_port=predictor_port, http_address="127.0.0.1")
    with process(arguments, port, tmp_path / "log") as running:  # ready: KServe says so whether its models are or not
        assert call(port, "GET", "/v1/models/m").status == 503
        with serving(picture_plane(), settings):
            wait_until(lambda: call(port, "GET", "/v1/models/m").status == 200, "the predictor was found")
            assert post(good, {"b64": plain(0)}) == (200, {"predictions": [[1.0] * 4, [0.0] * 4]})
            status, document = post(good, {"b64": "x"})
            assert status == 400
            assert str(document["error"]).startswith("'b64' is not valid base64")
            assert str(document["error"]).endswith("(instance 1)")
            status, document = post()
            assert (status, document["error"]) == (400, "'instances' is empty; it must hold at least one instance")
            assert post(good)[0] == 200
        status, document = post(good)
        assert status == 503
        assert str(document["error"]) == "Model with name m is not ready. the predictor cannot be reached"
        assert running.stop() == 0
        assert "Task was destroyed" not in running.output()
        assert "Unclosed" not in running.output()
