"""What clients may do to the models: the index, and loads and unloads in the control mode that allows them.

Knows no transport; decides by the mode alone and lets `lifecycle` do it.
"""

from collections.abc import Mapping

from oip.errors import Unavailable
from oip.server.extensions import IndexEntry
from torchscript_predictor.control import ControlMode, control_refusal
from torchscript_predictor.lifecycle import ModelLifecycle
from torchscript_predictor.states import ModelState


class ClientControl:
    """Implements `oip.server.extensions.ModelControl`."""

    def __init__(self, lifecycle: ModelLifecycle, mode: ControlMode) -> None:
        self._lifecycle = lifecycle
        self._refusal = control_refusal(mode)

    def index(self, *, ready_only: bool = False) -> list[IndexEntry]:
        """See `ModelControl.index`."""
        entries = self._lifecycle.index()
        return [entry for entry in entries if not ready_only or entry.state == ModelState.READY.value]

    async def load(self, name: str, *, config: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """See `ModelControl.load`."""
        self._check_allowed()
        await self._lifecycle.load(name, config, files)

    async def unload(self, name: str, *, unload_dependents: bool = False) -> None:
        """See `ModelControl.unload`.  There are no ensembles, so nothing depends on a model."""
        self._check_allowed()
        await self._lifecycle.unload(name)

    def _check_allowed(self) -> None:
        if self._refusal is not None:
            raise Unavailable(self._refusal)
