"""Every encoder with every way to adapt it: trained parameters, size of a fold's files, time and memory of a step.

    OMP_NUM_THREADS=1 python benchmarks/adaptations.py --size 224 --json adaptations.json

Each row is a process of its own: random weights, none of them zero, frozen ones in bfloat16, three classes, the head
that is planned by default, training steps at batch 1. The time is what the processor spent on the fastest step after
the first, which other programs on the machine hardly change where there is one thread. Peak memory is that of resident
memory less what was resident before the network was built (on a GPU: of allocated memory). A row that the free memory
does not allow is left without time and peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from step_memory import device_kind, network_plan, train_steps

ENCODERS = ("vit_h", "vit_b", "vit_t")
ADAPTATIONS = ("lora", "adapter", "full")
COMPONENTS = ("encoder_decoder", "decoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels, a multiple of 16")
    parser.add_argument("--encoders", nargs="+", default=[*ENCODERS, "small"])
    parser.add_argument("--repeats", type=int, default=2, help="steps after the first")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--row", nargs=3, metavar=("ENCODER", "ADAPTATION", "COMPONENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(row(*arguments.row, arguments.size, arguments.repeats)))
        return
    rows = []
    print("| encoder | adaptation | components | trained parameters | fold MiB | step s | peak GB | predicted GB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for encoder in arguments.encoders:
        ways = (
            [("full", "encoder_decoder")] if encoder == "small" else [(a, c) for c in COMPONENTS for a in ADAPTATIONS]
        )
        for adaptation, components in ways:
            command = [sys.executable, __file__, "--size", str(arguments.size), "--repeats", str(arguments.repeats)]
            command += ["--row", encoder, adaptation, components]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(result.stdout))
            print(line(rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(
                    json.dumps({"rows": rows, "threads": os.environ.get("OMP_NUM_THREADS")}, indent=2)
                )


def row(encoder: str, adaptation: str, components: str, size: int, repeats: int) -> dict:
    """Measure one way in this process."""
    from samunet.encoders import encoder_facts
    from samunet.models.checkpoint import save_model
    from samunet.network.model import build_model
    from samunet.planning.resources import step_bytes
    from samunet.planning.rules import head

    facts = encoder_facts(encoder)
    plan = network_plan(encoder, size, head(facts)[0], adaptation, components=components)
    predicted = step_bytes(plan, 1, device_kind())
    result = {"encoder": encoder, "adaptation": adaptation, "components": components, "size": size}
    result["predicted_bytes"] = predicted
    if 1.3 * predicted < free_bytes():
        model, peak, seconds = train_steps(plan, 1 + repeats)
        result |= {"peak_bytes": peak, "step_s": min(seconds[1:])}
    else:
        import torch

        with torch.device("meta"):
            model = build_model(plan, num_outputs=3, num_channels=1, unit_range=[False])
        model = model.to_empty(device="cpu")
    model.has_base = facts.is_sam
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), model, "final")
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return result | {"trained_parameters": model.trained_parameters(), "fold_bytes": stored}


def line(row: dict) -> str:
    """A row of the Markdown table."""
    parameters = sum(row["trained_parameters"].values())
    measured = (
        f"{row['step_s']:.2f} | {row['peak_bytes'] / 1e9:.2f}" if "step_s" in row else "too little memory free | "
    )
    return (
        f"| {row['encoder']} | {row['adaptation']} | {row['components']} | {parameters:,} | "
        f"{row['fold_bytes'] / 2**20:.1f} | {measured} | {row['predicted_bytes'] / 1e9:.2f} |"
    )


def free_bytes() -> int:
    """Memory that can still be had: of the device, or of the machine where it says so."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    if sys.platform != "linux":
        return sys.maxsize
    lines = dict(text.split(":") for text in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


if __name__ == "__main__":
    main()
