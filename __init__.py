"""Viker: make a multimodal LLM forget a person on request, provably and without breaking it.

The names below load on first use, so that `import viker` and `viker --help` stay free of torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "EncodedImage": ".data.example",
    "Example": ".data.example",
    "Message": ".data.example",
    "TeacherCache": ".precompute.cache",
    "load_model": ".models.load",
    "open_source": ".data.sources",
}

__all__ = ["EncodedImage", "Example", "Message", "TeacherCache", "__version__", "load_model", "open_source"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'viker' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name], __name__), name)
