"""How large an installation is: the packages that the default one and each extra bring, from what is installed here.

Usage: python -m tests.benchmarks.install_size [--top 15]
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the packages that these requirements install on this machine; those that are not here are left out."""
    found: set[str] = set()
    asked: set[tuple[str, str]] = set()
    waiting = [(Requirement(each), "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in asked:
                continue
            asked.add((name, wanted))
            try:
                needs = distribution(name).requires or []
            except PackageNotFoundError:
                continue
            found.add(name)
            waiting += [(Requirement(each), wanted) for each in needs]
    return found


def megabytes(name: str) -> float:
    """The size of a package's files."""
    files = distribution(name).files or []
    return sum(each.size or 0 for each in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--top", type=int, default=15)
    options = parser.parse_args()
    project = tomllib.loads(PROJECT.read_text())["project"]
    default = closure(project["dependencies"])
    sizes = {name: megabytes(name) for name in default}
    print(f"default: {len(default)} packages, {sum(sizes.values()):.0f} MB")
    for name in sorted(sizes, key=lambda name: -sizes[name])[: options.top]:
        print(f"  {name:28} {sizes[name]:7.1f} MB")
    print("only because it is named in dependencies (nothing else brings it):")
    for each in project["dependencies"]:
        alone = default - closure(other for other in project["dependencies"] if other != each)
        print(f"  {each.split(';')[0]:40} {sum(map(megabytes, alone)):7.1f} MB  {', '.join(sorted(alone))}")
    for extra, needs in project["optional-dependencies"].items():
        more = closure([*project["dependencies"], *needs]) - default
        print(f"[{extra}]: {len(more)} more packages, {sum(map(megabytes, more)):.0f} MB")


if __name__ == "__main__":
    main()
