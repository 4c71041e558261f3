"""Peak memory of training steps beside what the planner predicts, as a Markdown table.

    python benchmarks/step_memory.py --encoder vit_b --sizes 448 672 1024

Every row is a process of its own: the network of a plan with LoRA on all blocks or on the last half, frozen weights in
bfloat16, two steps at batch 1. On a CPU the peak is that of resident memory less what was resident before the network
was built; on a GPU it is the peak of allocated memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from sam_step import peak_resident_bytes, pick_device, resident_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", default="vit_b", choices=["vit_b", "vit_l", "vit_h", "vit_t"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[448, 672, 1024])
    parser.add_argument("--head", default="detail", choices=["sam", "detail"])
    parser.add_argument("--blocks", choices=["all", "last_half"], help="one row only, in this process")
    arguments = parser.parse_args()
    if arguments.blocks:
        print(row(arguments.encoder, arguments.sizes[0], arguments.head, arguments.blocks))
        return
    print("| encoder, px | blocks with LoRA | predicted GB | measured GB | predicted / measured |", flush=True)
    print("|---|---|---|---|---|", flush=True)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    for size in arguments.sizes:
        for blocks in ("all", "last_half"):
            command = [sys.executable, __file__, "--encoder", arguments.encoder, "--head", arguments.head]
            command += ["--sizes", str(size), "--blocks", blocks]
            subprocess.run(command, check=True, env=environment)


def row(encoder: str, size: int, head: str, blocks: str) -> str:
    from samunet.encoders import encoder_facts
    from samunet.planning.resources import estimate

    predicted = estimate(encoder_facts(encoder), [size, size], "lora", blocks=blocks, device=device_kind())
    predicted_bytes = predicted.fixed_bytes + predicted.image_bytes
    measured = measure(encoder, size, head, blocks)
    return (
        f"| {encoder}, {size} | {blocks} | {predicted_bytes / 1e9:.2f} | {measured / 1e9:.2f} | "
        f"{predicted_bytes / measured:.2f} |"
    )


def device_kind() -> str:
    return "gpu" if pick_device().type == "cuda" else "cpu"


def measure(encoder: str, size: int, head: str, blocks: str) -> int:
    """Peak bytes of two training steps with LoRA on all blocks or on the last half."""
    import torch

    from samunet.dataset.labels import Labels
    from samunet.network.image_encoder import hold_frozen
    from samunet.network.model import build_model
    from samunet.plans import LoraPlan, NetworkPlan
    from samunet.training.loss import SegmentationLoss

    device = pick_device()
    plan = NetworkPlan(
        encoder=encoder, input_shape=[size, size], spacing=1.0, head=head, adaptation="lora",
        lora=LoraPlan(blocks=blocks), input_channels="repeat", batch_size=1, accumulation=1, learning_rate=1e-3,
        weight_decay=0.1, training_images={"cpu": 1, "gpu": 1}, memory_bytes=0, training_gflops=0.0,
    )  # fmt: skip
    import peft  # noqa: F401  loaded before the measurement begins

    before = resident_bytes()
    model = build_model(plan, num_outputs=3, num_channels=1, unit_range=[False])
    hold_frozen(model.image_encoder, torch.bfloat16)
    model.to(device)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    image = torch.randn(1, 1, size, size, device=device)
    label = torch.randint(0, 3, (1, size, size), device=device)
    loss = SegmentationLoss(Labels.from_json({"background": 0, "a": 1, "b": 2})).to(device)
    for _ in range(2):
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(image)
        loss(logits.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident_bytes() - before


if __name__ == "__main__":
    main()
