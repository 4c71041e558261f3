"""Facts about each image encoder, without importing torch: the planner and the commands read them too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from samunet.errors import UsageError

# Mean and standard deviation of SAM's training images per colour channel, on 0-255 (segment_anything/build_sam.py).
SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)

BUNDLED_WEIGHTS = Path(__file__).parent / "weights"  # in the package


@dataclass(frozen=True)
class Stage:
    """One stage of a hierarchical encoder.

    Attributes:
        width, depth, heads: Channels, blocks and attention heads of the stage.
        window: Side of its attention windows in tokens; 0 for a stage of convolutions.
        stride: Input pixels per token and side.
    """

    width: int
    depth: int
    heads: int
    window: int
    stride: int


@dataclass(frozen=True)
class EncoderFacts:
    """What is fixed about an encoder.

    Attributes:
        name: What ``-encoder`` takes.
        width, depth, heads: Of the vision transformer; with ``stages``, of the last one.
        global_blocks: Indices of the blocks with global attention; all others attend within windows.
        patch_size: Input pixels per token and side.
        native_size: Side in pixels of the square input whose token grid ``pos_embed`` has.
        convolutional_stem: True if tokens come from a small stack of convolutions instead of one strided projection.
        pixel_mean, pixel_std: Statistics of the input the encoder was trained on, on 0-255.
        checkpoint_file: Name of the file with its weights.
        checkpoint_url: Where it is published; None for one in the package.
        checkpoint_bytes, checkpoint_sha256: What the published file is checked against; None if not known.
        checkpoint_licence: Of the weights.
        window: Side of the attention windows in tokens.
        embedding: Channels of the encoder's output (256 in every SAM).
        stages: Of a hierarchical encoder, first to last; empty for a plain vision transformer.
        architecture: Module in ``samunet/network/encoders/`` that builds it.
    """

    name: str
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    patch_size: int
    native_size: int
    convolutional_stem: bool = False
    pixel_mean: tuple[float, float, float] = SAM_PIXEL_MEAN
    pixel_std: tuple[float, float, float] = SAM_PIXEL_STD
    checkpoint_file: str = ""
    checkpoint_url: str | None = None
    checkpoint_bytes: int | None = None
    checkpoint_sha256: str | None = None
    checkpoint_licence: str | None = None
    window: int = 14
    embedding: int = 256
    stages: tuple[Stage, ...] = ()
    architecture: str = "vit"

    @property
    def is_sam(self) -> bool:
        """Whether it is a SAM's encoder with published weights; the small one's come with the package."""
        return self.checkpoint_url is not None

    @property
    def attention_blocks(self) -> int:
        """How many blocks with attention there are to adapt."""
        return sum(stage.depth for stage in self.stages if stage.window) if self.stages else self.depth


# Sizes and SHA-256 as independent users of the files recorded them (micro-sam's table among others). The digits in the
# names of Meta's files are not of the SHA-256: they begin the MD5.
_META = "https://dl.fbaipublicfiles.com/segment_anything/"
_MOBILE_SAM = "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/f706ad9c4eb7f219c00d9050e46328518ffb65d2/"

ENCODERS: dict[str, EncoderFacts] = {
    facts.name: facts
    for facts in (
        EncoderFacts(
            "vit_b", 768, 12, 12, (2, 5, 8, 11), 16, 1024,
            checkpoint_file="sam_vit_b_01ec64.pth", checkpoint_url=_META + "sam_vit_b_01ec64.pth",
            checkpoint_bytes=375_042_383, checkpoint_licence="Apache-2.0",
            checkpoint_sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        EncoderFacts(
            "vit_l", 1024, 24, 16, (5, 11, 17, 23), 16, 1024,
            checkpoint_file="sam_vit_l_0b3195.pth", checkpoint_url=_META + "sam_vit_l_0b3195.pth",
            checkpoint_bytes=1_249_524_607, checkpoint_licence="Apache-2.0",
            checkpoint_sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        EncoderFacts(
            "vit_h", 1280, 32, 16, (7, 15, 23, 31), 16, 1024,
            checkpoint_file="sam_vit_h_4b8939.pth", checkpoint_url=_META + "sam_vit_h_4b8939.pth",
            checkpoint_bytes=2_564_550_879, checkpoint_licence="Apache-2.0",
            checkpoint_sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        EncoderFacts(
            "vit_t", 320, 2, 10, (), 16, 1024, window=7, architecture="tiny_vit",
            checkpoint_file="mobile_sam.pt", checkpoint_url=_MOBILE_SAM + "weights/mobile_sam.pt",
            checkpoint_bytes=40_728_226, checkpoint_licence="Apache-2.0",
            checkpoint_sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            stages=(
                Stage(64, 2, 2, window=0, stride=4),
                Stage(128, 2, 4, window=7, stride=8),
                Stage(160, 6, 5, window=14, stride=16),
                Stage(320, 2, 10, window=7, stride=16),
            ),
        ),
        EncoderFacts(
            "small", 192, 8, 3, (3, 7), 16, 224, window=7,
            convolutional_stem=True, pixel_mean=(127.5, 127.5, 127.5), pixel_std=(63.75, 63.75, 63.75),
            checkpoint_file="small_pretrained.safetensors", checkpoint_licence="Apache-2.0",
        ),
    )
}  # fmt: skip

# Published files by the name that samunet_download_checkpoint takes: those of the encoders, and files made for one of
# them by others. MedSAM (Ma et al. 2024) was trained on pictures scaled to 0-1, without a mean and deviation.
CHECKPOINTS: dict[str, EncoderFacts] = {name: facts for name, facts in ENCODERS.items() if facts.checkpoint_url} | {
    "medsam": replace(
        ENCODERS["vit_b"],
        pixel_mean=(0.0, 0.0, 0.0), pixel_std=(255.0, 255.0, 255.0),
        checkpoint_file="medsam_vit_b.pth",
        checkpoint_url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
        checkpoint_bytes=375_049_145, checkpoint_licence="CC-BY-4.0",
        checkpoint_sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
    )
}  # fmt: skip
# What a fine-tuned SAM's input was normalised with, by the published file that has the same statistics.
PIXEL_STATISTICS = {"sam": "vit_b", "medsam": "medsam"}


def encoder_facts(name: str) -> EncoderFacts:
    """Look up an encoder.

    Raises:
        UsageError: If there is no such encoder; lists those there are.
    """
    if name not in ENCODERS:
        raise UsageError(f"there is no encoder {name!r}", f"choose one of: {', '.join(ENCODERS)}")
    return ENCODERS[name]
