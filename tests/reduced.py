"""The bundled encoder, reduced so that nothing takes long, with weights that fit it."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from bundled_weights.network import PretrainingModel

from samunet.encoders import ENCODERS
from samunet.models import pretrained
from samunet.network import checkpoints
from samunet.tensors import write_tensors

_FOLDER = tempfile.TemporaryDirectory(prefix="samunet_tests_")


def reduce_bundled_encoder(patch, **changes):
    """Replace the facts of ``small`` and the weights in the package, for as long as ``patch`` (monkeypatch) lasts."""
    facts = replace(ENCODERS["small"], **changes)
    file = Path(_FOLDER.name) / "_".join(f"{value}" for value in changes.values()) / facts.checkpoint_file
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            write_tensors(file, PretrainingModel(facts).sam_state(), {})
    patch.setitem(ENCODERS, "small", facts)
    for module in (pretrained, checkpoints):
        patch.setattr(module, "BUNDLED_WEIGHTS", file.parent)
