"""Peak memory of training steps beside what the planner predicts, as a Markdown table.

    python benchmarks/step_memory.py --encoder vit_b --sizes 448 672 1024
    python benchmarks/step_memory.py --encoder vit_b --sizes 448 --adaptation adapter
    python benchmarks/step_memory.py --encoder vit_b --sizes 448 1024 --checkpoint_blocks

Every row is a process of its own: the network of a plan with LoRA or bottleneck adapters on all blocks or on the last
half, or all of it trained, frozen weights in bfloat16, three steps at batch 1, the second and third timed. With
``--checkpoint_blocks`` every row comes again with blocks that are computed a second time in the backward pass. On a CPU
the peak is that of resident memory less what was resident before the network was built; on a GPU it is the peak of
allocated memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from sam_step import peak_resident_bytes, pick_device, resident_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", default="vit_b", choices=["vit_b", "vit_l", "vit_h", "vit_t"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[448, 672, 1024])
    parser.add_argument("--head", default="detail", choices=["sam", "detail"])
    parser.add_argument("--adaptation", default="lora", choices=["lora", "adapter", "full"])
    parser.add_argument("--checkpoint_blocks", action="store_true", help="rows with checkpointed blocks as well")
    parser.add_argument("--blocks", choices=["all", "last_half"], help="one row only, in this process")
    arguments = parser.parse_args()
    if arguments.blocks:
        print(row(arguments))
        return
    print(
        f"| encoder, px | blocks with {arguments.adaptation} | checkpointed | predicted GB | measured GB | "
        "predicted / measured | step s |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    for size in arguments.sizes:
        for blocks in ("all",) if arguments.adaptation == "full" else ("all", "last_half"):
            command = [sys.executable, __file__, "--encoder", arguments.encoder, "--head", arguments.head]
            command += ["--adaptation", arguments.adaptation]
            command += ["--sizes", str(size), "--blocks", blocks]
            for more in ([], ["--checkpoint_blocks"]) if arguments.checkpoint_blocks else ([],):
                subprocess.run(command + more, check=True, env=environment)


def row(arguments: argparse.Namespace) -> str:
    from samunet.planning.resources import step_bytes

    size, twice = arguments.sizes[0], arguments.checkpoint_blocks
    plan = network_plan(
        arguments.encoder, size, arguments.head, arguments.adaptation, arguments.blocks, checkpoint_blocks=twice
    )
    predicted = step_bytes(plan, 1, device_kind())
    _, measured, seconds = train_steps(plan, steps=3, clock=time.perf_counter)
    return (
        f"| {arguments.encoder}, {size} | {arguments.blocks} | {'yes' if twice else 'no'} | {predicted / 1e9:.2f} | "
        f"{measured / 1e9:.2f} | {predicted / measured:.2f} | {min(seconds[1:]):.2f} |"
    )


def device_kind() -> str:
    return "gpu" if pick_device().type == "cuda" else "cpu"


def network_plan(
    encoder: str,
    size: int,
    head: str,
    adaptation: str,
    blocks: str = "all",
    components: str = "encoder_decoder",
    *,
    checkpoint_blocks: bool = False,
):
    """The plan of a square network at batch 1, adapted as samunet's defaults have it."""
    from samunet.adaptations import ADAPTATIONS
    from samunet.plans import NetworkPlan

    adapted = ADAPTATIONS[adaptation](**({"blocks": blocks} if adaptation != "full" else {}))
    return NetworkPlan(
        encoder=encoder, input_shape=[size, size], spacing=1.0, head=head, components=components,
        adaptation=adapted.for_components(components),
        input_channels="repeat", batch_size=1, accumulation=1, learning_rate=1e-3, weight_decay=0.1,
        training_images={"cpu": 1, "gpu": 1}, memory_bytes=0, training_gflops=0.0,
        checkpoint_blocks=checkpoint_blocks,
    )  # fmt: skip


def train_steps(plan, steps: int = 2, clock=time.process_time) -> tuple:
    """Train on noise, from random weights of which none is zero.

    Args:
        plan: Of the network.
        steps: How many.
        clock: What times them: by default the processor's seconds.

    Returns:
        The network, the peak bytes, and the seconds of every step.
    """
    import torch

    from samunet.dataset.labels import Labels
    from samunet.network.encoders import hold_frozen
    from samunet.network.model import build_model
    from samunet.training.loss import SegmentationLoss

    device, size = pick_device(), plan.input_shape[0]
    import peft  # noqa: F401  loaded before the measurement begins

    before = resident_bytes()
    model = build_model(plan, num_outputs=3, num_channels=1, unit_range=[False])
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    hold_frozen(model.image_encoder, torch.bfloat16)
    model.to(device)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    image = torch.randn(1, 1, size, size, device=device)
    label = torch.randint(0, 3, (1, size, size), device=device)
    loss = SegmentationLoss(Labels.from_json({"background": 0, "a": 1, "b": 2})).to(device)
    seconds = []
    for _ in range(steps):
        begin = clock()
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(image)
        loss(logits.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident_bytes() - before
    return model, peak, seconds


if __name__ == "__main__":
    main()
