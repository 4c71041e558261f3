"""SAM's own modules from the ``segment_anything`` package, loaded without the package's ``__init__``.

``segment_anything/__init__.py`` imports torchvision for its predictor, which samunet does not need and which has no
build beside many CPU builds of torch. Only the ``modeling`` subpackage, which needs nothing but torch, is executed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from samunet.errors import SamunetError


def _load_modeling() -> ModuleType:
    if "segment_anything" in sys.modules:
        return importlib.import_module("segment_anything.modeling")
    spec = importlib.util.find_spec("segment_anything")
    if spec is None or not spec.submodule_search_locations:
        raise SamunetError("the package segment-anything is not installed", "pip install segment-anything")
    # An empty stand-in for the package lets Python find its subpackages; it is taken away again, so that a program
    # which also uses the whole of segment_anything still gets the real one.
    stand_in = ModuleType("segment_anything")
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules["segment_anything"] = stand_in
    try:
        return importlib.import_module("segment_anything.modeling")
    finally:
        del sys.modules["segment_anything"]


_modeling = _load_modeling()

ImageEncoderViT = _modeling.ImageEncoderViT
MaskDecoder = _modeling.MaskDecoder
PromptEncoder = _modeling.PromptEncoder
TwoWayTransformer = _modeling.TwoWayTransformer
LayerNorm2d = _modeling.image_encoder.LayerNorm2d
Attention = _modeling.image_encoder.Attention
Block = _modeling.image_encoder.Block
get_rel_pos = _modeling.image_encoder.get_rel_pos
