"""What becomes of one instance's outputs, by task.

Pure functions over arrays; knows no request and no predictor.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, computed in float64 and shifted so that nothing overflows."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    result: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def classification(
    scores: np.ndarray, *, activation: Literal["none", "softmax"], top_k: int, labels: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The `top_k` best classes of [classes] scores, best first, as `{label, index, score}`.

    Fewer come where there are fewer.  A class without a label is named by its index, and equal
    scores come in the order of their index.
    """
    values = scores.reshape(-1).astype(np.float64)  # a negated unsigned integer would wrap around
    if activation == "softmax":
        values = softmax(values)
    best = np.argsort(-values, kind="stable")[:top_k]
    return [
        {
            "label": labels[index] if labels and index < len(labels) else str(index),
            "index": int(index),
            "score": float(values[index]),
        }
        for index in best
    ]


def raw(outputs: Mapping[str, np.ndarray]) -> Any:
    """One output gives its row, several give `{name: row}`; bytes become text."""
    rows = {name: _plain(row) for name, row in outputs.items()}
    return next(iter(rows.values())) if len(rows) == 1 else rows


def _plain(row: np.ndarray) -> Any:
    if row.dtype == object:
        return [
            item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in row.reshape(-1).tolist()
        ]
    return row.tolist()
