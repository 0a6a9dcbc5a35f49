"""Advanced options: parsed, completed and documented like all others, but listed by `--help-all` only.

They keep the first help page of a command short. A rare option is declared with `cls=AdvancedOption`.
"""

from __future__ import annotations

import difflib
from typing import Final

import click

_FEW: Final = 8
_LISTED: Final = "weightyard.advanced.listed"


class AdvancedOption(click.Option):
    """An option that `--help` leaves out. Unlike a hidden one, shells still complete it."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return super().get_help_record(ctx) if _LISTED in ctx.meta else None


class _HelpAllOption(click.Option):
    """`--help-all`. Listed only by commands that have advanced options; all others accept it too."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        has_advanced = any(isinstance(each, AdvancedOption) for each in ctx.command.params)
        return super().get_help_record(ctx) if has_advanced else None


class SuggestingGroup(click.Group):
    """A group that answers an unknown command with the closest name, or with all of a few."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            told = error.format_message()
            # Some versions of click suggest names themselves.
            meant = "" if "Did you mean" in told else self.meant(ctx, args[0])
            raise click.UsageError(told + meant, ctx) from error

    def meant(self, ctx: click.Context, given: str) -> str:
        """What an unknown command may stand for, as a sentence after a space; empty where nothing is close."""
        names = self.list_commands(ctx)
        close = difflib.get_close_matches(given, names, n=1)
        if close:
            return f" Did you mean {close[0]!r}?"
        return f" There are: {', '.join(names)}." if len(names) <= _FEW else ""


def list_advanced(ctx: click.Context) -> None:
    """Makes help records of this context and its children include advanced options."""
    ctx.meta[_LISTED] = True


def help_all_option() -> click.Option:
    """`--help-all`: prints the help with all options and exits."""
    return _HelpAllOption(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_all,
        help="Show this message with the advanced options and exit.",
    )


def _print_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        list_advanced(ctx)
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
