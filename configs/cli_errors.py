"""Known errors on the command line: one line and an exit code, no traceback; choices with the nearest word."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from configs import SettingsError, nearest

if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # which click before 8.4 cannot say
    _Choice = click.Choice

P = ParamSpec("P")
R = TypeVar("R")


class _KnownError(click.ClickException):
    def __init__(self, error: BaseException) -> None:
        super().__init__("\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])]))


class _WrongSettingError(_KnownError):
    exit_code = 2


def one_line(*families: type[BaseException]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for commands: errors of `families` end the command as `Error: ...`, exit code 1 (SettingsError 2).

    Goes below `@click.command()`, next to the function. All other errors keep their traceback.
    """

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def friendly(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return command(*args, **kwargs)
            except families as error:
                kind = _WrongSettingError if isinstance(error, SettingsError) else _KnownError
                raise kind(error) from error

        return friendly

    return decorate


class OneOf(_Choice):
    """One of some words; of a wrong one it is said which is nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            told = error.message.rstrip(".") + nearest(str(value), list(self.choices))
            raise click.BadParameter(told, ctx=ctx, param=param) from None
