"""`tandem COMMAND`: loads the code of a command only when it is called, so that help is quick."""

import importlib

import click

_COMMANDS = {
    "up": ("tandem.up:command", "Run transformer and predictor together on this machine."),
    "predictor": ("torchscript_predictor.__main__:command", "Serve a model repository (V2)."),
    "transformer": ("kserve_transformer.__main__:command", "Serve transformers (V1) in front of a predictor."),
    "predict": ("tandem.predict:command", "Send photos to a running service and print the answers."),
    "check": ("tandem.check:command", "Say whether the predictor would serve the models of a repository."),
    "export": ("tandem.export:command", "Write a torch model into a model repository."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table above: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tandem-serving", prog_name="tandem")
def main() -> None:
    """Vision models on KServe: a picture transformer and a TorchScript predictor that ride together."""


if __name__ == "__main__":
    main(prog_name="tandem")
