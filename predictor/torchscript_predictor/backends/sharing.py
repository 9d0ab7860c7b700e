"""Whether several threads may execute one loaded TorchScript module at the same time.

They may where an execution leaves nothing behind: the graph sets no attribute and holds nothing but tensors that
it could change in place, and executing it once has written into none of the module's tensors.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

_CUSTOM_CLASSES = "__torch__.torch.classes."
_MUTABLE_KINDS = ("ListType", "DictType", "InterfaceType", "AnyType", "PyObjectType")


def leaves_nothing_behind(module: Any, graph: Any, execute: Callable[[], object]) -> bool:
    """Whether executing `graph`, a method's inlined graph, changes nothing that the module keeps.

    Args:
        execute: executes it once, on the calling thread.
    """
    if any(_may_change_state(node) for node in _nodes(graph)):
        return False
    tensors = list(chain(module.parameters(), module.buffers()))
    versions = [tensor._version for tensor in tensors]
    before = [buffer.clone() for buffer in module.buffers()]
    execute()
    # not every operator counts its writes (batch norm's statistics), and not every write changes a value
    return versions == [tensor._version for tensor in tensors] and all(
        torch.equal(torch.nan_to_num(old), torch.nan_to_num(new))
        for old, new in zip(before, module.buffers(), strict=True)
    )


def _nodes(block: Any) -> Iterator[Any]:
    """All nodes of a graph or block, those of inner blocks and of forked graphs too."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
        for name in node.attributeNames():
            if node.kindOf(name) == "g":
                yield from _nodes(node.g(name))


def _may_change_state(node: Any) -> bool:
    kind = node.kind()
    if kind == "prim::GetAttr":
        kept = node.output().type()
        return kept.kind() in _MUTABLE_KINDS or str(kept).startswith(_CUSTOM_CLASSES)
    return kind in ("prim::SetAttr", "prim::CallMethod")  # a call that is not inlined may do anything
