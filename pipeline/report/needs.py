"""The packages that a report needs beside those of a run."""

from __future__ import annotations

from importlib.util import find_spec

from sgi2v.errors import ConfigError

PACKAGES = ("jinja2", "plotly")


def check_installed() -> None:
    """Raise ConfigError that names the extra, if a package is missing. Loads none of them."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a report needs the extra [report] ({', '.join(missing)} not installed): pip install 'sgi2v-batch[report]'"
        )
