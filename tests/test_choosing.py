"""The page on encoders and adaptations, and the benchmark that makes its table."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import adaptations  # noqa: E402
from step_memory import network_plan  # noqa: E402

ROW = re.compile(r"^\| (\w+) \| (\w+) \| (\w+) \| ([\d,]+) \| ([\d.]+) \|", re.MULTILINE)
ROWS = {
    tuple(match[:3]): (int(match[3].replace(",", "")), float(match[4]))
    for match in ROW.findall((ROOT / "documentation" / "results" / "speed.md").read_text(encoding="utf-8"))
}


def test_table_has_every_combination():
    wanted = {
        (encoder, adaptation, components)
        for encoder in adaptations.ENCODERS
        for adaptation in adaptations.ADAPTATIONS
        for components in adaptations.COMPONENTS
    }
    assert len(wanted) == 18
    assert set(ROWS) == wanted | {("small", "full", "encoder_decoder")}


@pytest.mark.parametrize(
    "encoder",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "vit_h")) for name in ("vit_t", "vit_b", "vit_h")],
)
def test_parameters_of_the_table_are_those_of_the_networks(encoder):
    from samunet.network.model import build_model

    for (name, adaptation, components), (parameters, mebibytes) in ROWS.items():
        if name == encoder:
            with torch.device("meta"):
                plan = network_plan(encoder, 224, "sam", adaptation, components=components)
                model = build_model(plan, num_outputs=3, num_channels=1, unit_range=[False])
            assert sum(model.trained_parameters().values()) == parameters
            # Four bytes each, the names, and the running statistics of MobileSAM's convolutions.
            assert 4 * parameters <= (mebibytes + 0.05) * 2**20 < 4.02 * parameters + 300_000


@pytest.mark.long
def test_benchmark_measures_a_row():
    script = ROOT / "benchmarks" / "adaptations.py"
    command = [sys.executable, str(script), "--size", "64", "--repeats", "1", "--row", "vit_t", "lora", "decoder"]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # LoRA in the decoder's transformer, upscaling, quality token, no_mask_embed, and three classes.
    assert sum(row["trained_parameters"].values()) == 23_552 + 73_952 + 256 + 256 + 3 * 140_064
    assert 4 * 518_208 < row["fold_bytes"] < 4 * 518_208 + 100_000
    assert min(row["step_s"], row["peak_bytes"]) > 0
    assert adaptations.line(row).startswith("| vit_t | lora | decoder | 518,208 | 2.0 | ")


def test_a_row_without_memory_says_so():
    row = {"encoder": "vit_h", "adaptation": "full", "components": "encoder_decoder", "fold_bytes": 2**31}
    row |= {"trained_parameters": {"head": 5}, "predicted_bytes": 10**10}
    assert adaptations.line(row).endswith("| 5 | 2048.0 | too little memory free |  | 10.00 |")
