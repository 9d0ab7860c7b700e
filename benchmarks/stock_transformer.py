"""The peer: an image transformer written for stock KServe, as its samples are.

Run with kserve's own server and flags.  One picture an instance, torchvision's ToTensor and Normalize, the V2
REST protocol to the predictor, the answer as V1 predictions.
"""

import base64
import io
from typing import Any

import kserve
import numpy as np
from kserve import InferInput, InferRequest, InferResponse, Model, ModelServer, model_server
from PIL import Image
from torchvision import transforms


class StockImageTransformer(Model):
    """Synchronous preprocess, an ndarray handed to `InferInput`: what KServe's custom transformer does."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        )

    def preprocess(self, payload: Any, headers: Any = None) -> InferRequest:
        """V1 instances to one V2 tensor."""
        pictures = [
            self.transform(Image.open(io.BytesIO(base64.b64decode(instance["image"]["b64"])))).numpy()
            for instance in payload["instances"]
        ]
        batch = np.asarray(pictures)
        tensor = InferInput(name="INPUT__0", datatype="FP32", shape=list(batch.shape), data=batch)
        return InferRequest(model_name=self.name, infer_inputs=[tensor])

    def postprocess(self, result: InferResponse, headers: Any = None, response_headers: Any = None) -> Any:
        """The first output's rows as predictions."""
        return {"predictions": result.outputs[0].as_numpy().tolist()}


if __name__ == "__main__":
    arguments, _ = model_server.parser.parse_known_args()
    kserve.logging.configure_logging()
    ModelServer().start([StockImageTransformer(arguments.model_name)])
