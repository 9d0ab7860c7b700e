"""The table of models that is printed when loading is over.

Turns states into a rich table; asks nobody anything.
"""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from torchscript_predictor.states import ModelState, ModelStatus


def models_table(statuses: Sequence[ModelStatus]) -> Table:
    """One row for every model version: name, version, state and reason, load time, instances x threads."""
    table = Table(title="Models", title_justify="left", title_style="bold")
    table.add_column("Model", overflow="fold")
    table.add_column("Version", justify="right")
    table.add_column("State")
    table.add_column("Load ms", justify="right")
    table.add_column("Instances x threads", justify="right")
    table.add_column("Reason", overflow="fold")
    for status in statuses:
        ready = status.state is ModelState.READY
        table.add_row(
            Text(status.name),  # Text, because a name in brackets would be read as markup
            Text(status.version),
            Text(status.state.value, style="green" if ready else "red"),
            f"{status.load_seconds * 1000:.0f}" if ready else "",
            f"{status.instances} x {status.intra_op_threads}" if ready else "",
            Text(status.reason),
        )
    return table
