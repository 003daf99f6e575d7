"""The packages that a command needs beyond those of the core, by the extra that brings them. Needs nothing."""

from importlib import import_module

EXTRAS = {
    "report": ("itables", "jinja2", "plotly"),
    "train": ("scipy", "shtab", "sklearn", "yaml"),
}


class MissingExtraError(ImportError):
    """An extra of lstsd-hf is not installed."""


def require(extra: str) -> None:
    """Raises MissingExtraError, which says what to install, where a package of an extra is missing."""
    for name in EXTRAS[extra]:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # it is there, and something that it needs is not
                raise
            raise MissingExtraError(
                f"The package {name!r} is missing: expected the extra {extra!r}. Install it: "
                f"pip install 'lstsd-hf[{extra}]'"
            ) from error
