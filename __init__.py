"""Viker: make a multimodal LLM forget a person on request, provably and without breaking it.

The names below load on first use, so that `import viker` and `viker --help` stay free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.example import EncodedImage as EncodedImage
    from .data.example import Example as Example
    from .data.example import Message as Message
    from .data.read_examples import read_examples as read_examples
    from .data.sources import open_source as open_source
    from .models.load import encode as encode
    from .models.load import load_model as load_model
    from .precompute.cache import TeacherCache as TeacherCache
    from .precompute.opened import open_cache as open_cache
    from .train.viker_loss import viker_loss as viker_loss

__version__ = "0.1.0"

_HOMES = {
    "EncodedImage": ".data.example",
    "Example": ".data.example",
    "Message": ".data.example",
    "TeacherCache": ".precompute.cache",
    "encode": ".models.load",
    "load_model": ".models.load",
    "open_cache": ".precompute.opened",
    "open_source": ".data.sources",
    "read_examples": ".data.read_examples",
    "viker_loss": ".train.viker_loss",
}

__all__ = [
    "EncodedImage", "Example", "Message", "TeacherCache", "__version__", "encode", "load_model", "open_cache",
    "open_source", "read_examples", "viker_loss",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'viker' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name], __name__), name)
