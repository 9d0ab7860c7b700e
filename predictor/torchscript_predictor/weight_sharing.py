"""Whether a model's instances on one device execute one loaded copy, or each one of its own.

Where the configuration does not say, CPU instances share if an execution leaves nothing behind.  Knows no
torch: the backend's model looks into itself.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from oip.errors import InferenceError
from torchscript_predictor.backends import LoadedModel, Shareable
from torchscript_predictor.model_config import ModelConfig
from torchscript_predictor.repository import RepositoryError
from torchscript_predictor.warmup import PICTURE_SIDE, Arrays, sample_inputs, zero_inputs


def may_share(model: LoadedModel, config: ModelConfig, device: str | None, warmup_file: Callable[[str], Path]) -> bool:
    """Whether further instances on the device may execute this copy; may execute it on the calling thread.

    ENABLE_WEIGHT_SHARING decides where it is set.  A model that cannot be tried is not shared.
    """
    if config.parameters.weight_sharing is not None:
        return config.parameters.weight_sharing
    if device != "cpu" or not isinstance(model, Shareable):
        return False
    for inputs in _probes(config, warmup_file):
        try:
            return model.is_shareable(inputs)
        except InferenceError:
            continue
    return False


def _probes(config: ModelConfig, warmup_file: Callable[[str], Path]) -> Iterator[Arrays]:
    """The configured samples, or zeros where there are none."""
    for sample in config.warmup:
        try:
            yield sample_inputs(sample, config, warmup_file)
        except (RepositoryError, ValueError):  # warm-up will say so
            return
    if not config.warmup:
        for side in (1, PICTURE_SIDE):
            zeros = zero_inputs(config, batch_size=1, variable=side)
            if zeros is not None:
                yield zeros
