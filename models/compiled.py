"""Compile a model's text layers, for devices where launching many small kernels costs more than they do.

Everything but attention is compiled, once for whatever number of tokens a batch has; attention in two parts
(`two_part.py`) reads its layout from outside the graph and calls fused kernels already. Whether it pays is the device's
to say: on a CPU it does not.
"""

from typing import Any

from .positions import backbone


def compile_text_layers(model: Any) -> None:
    """Let each text layer be compiled when it first runs, which takes up to some minutes."""
    for layer in backbone(model).get_decoder().layers:
        layer.compile(dynamic=True)
