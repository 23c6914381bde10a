"""Let a CUDA build of torchvision be imported beside a CPU build of torch, in a test environment.

Package indexes that offer one build of each offer those two. torchvision's Python registers shapes for two compiled
operators that its library, built for CUDA, cannot bring here; with both declared (and never called: image and video
processors resize and normalize with torch's own operators) everything else of it works. `.ci/install` puts this file
and a `.pth` line that imports it into the environment, so that every process has it; where torchvision is never
imported, it does nothing.
"""

import sys

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = []


class _DeclareFirst:
    """Declares the operators when torchvision is first looked for; leaves finding it to others."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + _SIGNATURE)
            _declared.append(library)  # what it defines lives as long as it does


sys.meta_path.insert(0, _DeclareFirst())
