"""One step of LoRA training and one forward pass of SAM's image encoder: segment_anything's code against samunet's.

The reference is segment_anything's unmodified encoder with LoRA as SAMed writes it (Zhang & Liu 2023), in float32.
Every variant runs in a process of its own, on the same weights and the same image:

    python benchmarks/sam_step.py --encoder vit_b --size 1024 --batch 1 --json step.json

The times are the best of ``--repeats`` after one run to warm up. A step is forward, a mean square as loss, backward,
and AdamW on the LoRA matrices; the forward pass runs without gradients. Peak memory is the peak of resident memory less
what was resident before the model was built (on a GPU: the peak of allocated memory).

Threads wait actively (``OMP_WAIT_POLICY=ACTIVE``) on a quiet machine and passively on a busy one (load above 0.5),
unless the variable is set; the result says which.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path

VARIANTS = {"reference": "float32", "samunet": "bfloat16", "samunet_float32": "float32"}
RANK = 4


def main() -> None:
    arguments = build_parser().parse_args()
    if arguments.variant:
        result = measure_matmul() if arguments.variant == "matmul" else measure(arguments)
        print(json.dumps(result))
        return
    result = compare(arguments)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--size", type=int, default=1024, help="side of the input in pixels, a multiple of 16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--variant", choices=[*VARIANTS, "matmul"], help="measure only this, in this process")
    parser.add_argument("--embedding", type=Path, help=argparse.SUPPRESS)
    return parser


def compare(arguments: argparse.Namespace) -> dict:
    """Measure every variant in a process of its own and set them against each other."""
    environment = dict(os.environ)
    # Threads that wait actively answer at once, but take the cores from other programs.
    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE" if busy else "ACTIVE")
    result: dict = {key: getattr(arguments, key) for key in ("encoder", "size", "batch")}
    result["omp_wait_policy"] = environment["OMP_WAIT_POLICY"]
    with tempfile.TemporaryDirectory() as folder:
        for variant in ("matmul", *VARIANTS):
            command = [sys.executable, __file__, "--variant", variant, "--embedding", f"{folder}/{variant}.npy"]
            command += [f"--{key}={getattr(arguments, key)}" for key in ("encoder", "size", "batch", "repeats")]
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            result[variant] = json.loads(run.stdout)
            print(f"{variant}: {result[variant]}", file=sys.stderr)
        for variant in ("samunet", "samunet_float32"):
            result[variant]["relative_error"] = relative_error(folder, variant)
    for name, variant in (("ratio", "samunet"), ("ratio_float32", "samunet_float32")):
        ours, theirs = result[variant], result["reference"]
        result[name] = {
            "step": theirs["step_s"] / ours["step_s"],
            "forward": theirs["forward_s"] / ours["forward_s"],
            "memory": ours["peak_bytes"] / theirs["peak_bytes"],
        }
    result["matmul_share"] = useful_operations(arguments) / possible_operations(result)
    return result


def possible_operations(result: dict) -> float:
    """Operations that samunet's step could have done at the rate of a large matrix product in the faster format."""
    rates = [rate for key, rate in result["matmul"].items() if key.endswith("_gflops")]
    return result["samunet"]["step_s"] * max(rates) * 1e9


def useful_operations(arguments: argparse.Namespace) -> float:
    """Floating-point operations of a step without window padding and recomputation (the head has no part in it)."""
    from samunet.encoders import encoder_facts
    from samunet.network.encoders import architecture

    facts = encoder_facts(arguments.encoder)
    forward, backward = architecture(facts).operations(facts, [arguments.size, arguments.size])
    return arguments.batch * (forward + backward)


def relative_error(folder: str, variant: str) -> float:
    import numpy as np

    ours, theirs = np.load(f"{folder}/{variant}.npy"), np.load(f"{folder}/reference.npy")
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def measure_matmul(sides: tuple[int, ...] = (512, 1024, 2048, 4096)) -> dict:
    """Rates of a square matrix product: the largest, or the first that takes a second (bfloat16 without hardware)."""
    import torch

    device = pick_device()
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        for side in sides:
            matrix = torch.randn(side, side, device=device).to(dtype)
            seconds = best_time(partial(torch.mm, matrix, matrix), 3, device)
            if seconds > 1:
                break
        rates[f"{str(dtype).removeprefix('torch.')}_gflops"] = 2 * side**3 / seconds / 1e9
    return rates | {"threads": torch.get_num_threads(), "device": str(device), "torch": torch.__version__}


def measure(arguments: argparse.Namespace) -> dict:
    """Build one variant and time it."""
    import numpy as np
    import torch

    device = pick_device()
    import samunet.network.model  # noqa: F401  what is imported now is no part of the model's memory

    before = resident_bytes()
    dtype = getattr(torch, VARIANTS[arguments.variant])
    build = reference_encoder if arguments.variant == "reference" else samunet_encoder
    encoder = build(arguments, dtype).to(device)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(arguments.batch, 3, arguments.size, arguments.size, generator=generator).to(device)

    def forward():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype is not torch.float32):
            return encoder(image)

    def step():
        forward().float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with torch.no_grad():
        if arguments.embedding:
            np.save(arguments.embedding, forward().float().cpu().numpy())
        forward_s = best_time(forward, arguments.repeats, device)
    step_s = best_time(step, arguments.repeats, device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident_bytes() - before
    result = {"step_s": step_s, "forward_s": forward_s, "peak_bytes": peak, "dtype": VARIANTS[arguments.variant]}
    if arguments.variant != "reference":
        from samunet.network.attention import attention_form

        result["attention"] = attention_form(device)
    return result


def samunet_encoder(arguments: argparse.Namespace, dtype):
    """samunet's encoder with LoRA from peft; frozen weights in ``dtype``."""
    from samunet.adaptations import LoraPlan
    from samunet.encoders import encoder_facts
    from samunet.network.encoders import hold_frozen
    from samunet.network.encoders.vit import ImageEncoder

    encoder = ImageEncoder(encoder_facts(arguments.encoder))
    fill(encoder)
    adapted = LoraPlan().adapt_encoder(encoder)
    for index, block in enumerate(encoder.blocks):
        for part in "qv":
            layer = getattr(block.attn.qkv, part)
            fill_lora(layer.lora_A["default"], layer.lora_B["default"], index, part)
    hold_frozen(adapted, dtype)
    return adapted


def reference_encoder(arguments: argparse.Namespace, dtype):
    """segment_anything's encoder, its positions interpolated as SAMed does, with SAMed's LoRA; always float32."""
    import torch.nn.functional as F
    from torch import nn

    from samunet.encoders import encoder_facts
    from samunet.network.sam_modules import ImageEncoderViT

    class SamedQKV(nn.Module):
        """The fused projection, with low-rank updates added to the columns of q and of v."""

        def __init__(self, fused: nn.Linear, index: int) -> None:
            super().__init__()
            self.fused, self.width = fused, fused.in_features
            self.down = nn.ModuleDict({part: nn.Linear(self.width, RANK, bias=False) for part in "qv"})
            self.up = nn.ModuleDict({part: nn.Linear(RANK, self.width, bias=False) for part in "qv"})
            for part in "qv":
                fill_lora(self.down[part], self.up[part], index, part)

        def forward(self, tokens):
            qkv = self.fused(tokens)
            qkv[..., : self.width] += self.up["q"](self.down["q"](tokens))
            qkv[..., -self.width :] += self.up["v"](self.down["v"](tokens))
            return qkv

    facts = encoder_facts(arguments.encoder)
    encoder = ImageEncoderViT(
        img_size=facts.native_size, patch_size=facts.patch_size, embed_dim=facts.width, depth=facts.depth,
        num_heads=facts.heads, out_chans=facts.embedding, use_rel_pos=True, window_size=facts.window,
        global_attn_indexes=facts.global_blocks, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    fill(encoder)
    grid = 2 * [arguments.size // facts.patch_size]
    positions = F.interpolate(encoder.pos_embed.permute(0, 3, 1, 2), size=grid, mode="bilinear")
    encoder.pos_embed = nn.Parameter(positions.permute(0, 2, 3, 1))
    encoder.requires_grad_(False)
    for index, block in enumerate(encoder.blocks):
        block.attn.qkv = SamedQKV(block.attn.qkv, index)
    return encoder.to(dtype)


def fill(module) -> None:
    """The same non-zero values for a parameter's name in every variant (SAM's default for positions is zero)."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            scale = parameter[0].numel() ** -0.5 if parameter.ndim >= 2 else 0.02
            parameter.normal_(std=scale, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1)


def fill_lora(down, up, index: int, part: str) -> None:
    import torch

    with torch.no_grad():
        for role, layer in (("down", down), ("up", up)):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{index}.{part}.{role}".encode()))
            layer.weight.normal_(std=0.02, generator=generator)


def pick_device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_time(function, repeats: int, device) -> float:
    import torch

    best = float("inf")
    for index in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index:
            best = min(best, time.perf_counter() - begin)
    return best


def resident_bytes() -> int:
    import resource

    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
