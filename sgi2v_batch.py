"""The entry point of `sgi2v-batch`, in a module whose name no file of a user has.

A user's folder with a `pipeline.py` or a folder `manifests` may come first on the path of a process, which would then
import the user's module in place of ours. This module loads our packages from the folder that it lies in itself.
"""

from __future__ import annotations

import sys
import traceback
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

BROKEN = 3
"""Exit code of a command whose installation is incomplete."""
PACKAGES = ("sgi2v", "manifests", "pipeline", "jobs")


def load_packages() -> None:
    """Load our packages, whatever the path is. Python finds their modules through them from then on."""
    for name in PACKAGES:
        if name not in sys.modules:
            spec = PathFinder.find_spec(name, [str(Path(__file__).parent)])
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])


def main() -> None:
    """Entry point of the console script."""
    try:
        load_packages()
        from pipeline.cli.main import main as run_command
    except Exception:  # Python would end with 1, which means that some rows failed
        traceback.print_exc()
        sys.exit(BROKEN)
    run_command()


if __name__ == "__main__":
    main()
