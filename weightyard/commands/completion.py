"""`weightyard completion SHELL`: prints the shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from weightyard.console import Console, pass_console


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@pass_console
@click.pass_context
def completion(ctx: click.Context, console: Console, shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish.

    \b
    bash:  source <(weightyard completion bash)
    zsh:   source <(weightyard completion zsh)
    fish:  weightyard completion fish | source
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    script = kind(ctx.find_root().command, {}, "weightyard", "_WEIGHTYARD_COMPLETE").source()
    console.result({"shell": shell, "script": script}, script.rstrip())
