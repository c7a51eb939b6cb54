"""SG-I2V on Stable Video Diffusion: image-to-video generation whose boxes follow given paths.

The names in `__all__` are the public face. Each is imported when it is first used, so that `import sgi2v` loads neither
torch nor NumPy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgi2v.config import GuidanceConfig, ModelConfig, SamplerConfig
    from sgi2v.errors import ConfigError, ModelError, SampleError, SGI2VError
    from sgi2v.generate import Generation, generate
    from sgi2v.model import VideoModel, load_model
    from sgi2v.trajectory import BoxTracks

    __version__: str

__all__ = [
    "BoxTracks",
    "ConfigError",
    "Generation",
    "GuidanceConfig",
    "ModelConfig",
    "ModelError",
    "SGI2VError",
    "SampleError",
    "SamplerConfig",
    "VideoModel",
    "generate",
    "load_model",
]

_MODULES = {
    "sgi2v.config": ("GuidanceConfig", "ModelConfig", "SamplerConfig"),
    "sgi2v.errors": ("ConfigError", "ModelError", "SampleError", "SGI2VError"),
    "sgi2v.generate": ("Generation", "generate"),
    "sgi2v.model": ("VideoModel", "load_model"),
    "sgi2v.trajectory": ("BoxTracks",),
}
"""Module -> the public names that it defines."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sgi2v-batch")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


class _Package(ModuleType):
    """Keeps `sgi2v.generate` the function: importing the submodule of that name would replace it by the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "generate" and isinstance(value, ModuleType):
            value = value.generate
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Pickle by name, as Ray does with plain modules that a function uses."""
        return import_module, (__name__,)


sys.modules[__name__].__class__ = _Package
