"""Commands that bring weights and models here, and hand models on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samunet.commands.flags import MODEL, PLANS, checkpoint, finite
from samunet.commands.table import NOTHING_WRITTEN, Flag, Switch, command
from samunet.errors import UsageError, quoted


@command(
    "bring published weights into the checkpoints folder",
    Flag(
        "names",
        also=("name",),
        metavar="name",
        nargs="*",
        help="one or several of vit_b, vit_l, vit_h (SAM), vit_t (MobileSAM) and medsam, whose encoder is vit_b: "
        "train with --checkpoint; --list shows all",
    ),
    Switch("--list", help="show what there is, with sizes and licences, and what of it is here"),
    Flag("--folder", type=Path, help="where to (default: samunet_checkpoints, else ~/.cache/samunet)"),
    Flag("--url", help="another source of the same file, for example a mirror in your network"),
    Switch("--force", dest="overwrite", help="download again and replace the file that is there"),
    description="Download published weights; goes on where it stopped, and verifies size and SHA-256. A file that is "
    "there already is verified. http_proxy, https_proxy, no_proxy and SSL_CERT_FILE are honoured.",
    examples=("samunet_download_checkpoint vit_b", "samunet_download_checkpoint --list"),
    see="[Weights without a network](how_commands_work.md#weights-without-a-network)",
    calls=("download_checkpoint", "published_checkpoints --list"),
)
def download_checkpoint(names: list[str], list: bool, folder: Path | None, url: str | None, **given: Any) -> None:
    from samunet import api, paths

    folder = (folder or paths.checkpoints_folder()).expanduser()
    published = api.published_checkpoints(folder)
    unknown = [name for name in names if name not in published]
    if unknown or not (names or list):
        what = f"there are no published weights called {unknown[0]!r}" if unknown else "no weights were named"
        raise UsageError(what, f"choose from: {', '.join(published)}; --list shows them")
    if url and len(names) != 1:
        raise UsageError("--url is the source of one file", "name one")
    for name in names:
        print(f"{name}: {api.download_checkpoint(name, folder, url=url, **given)}")
    if list:
        _print_table(folder, api.published_checkpoints(folder))
    if names and folder != paths.checkpoints_folder():
        print(f"for samunet_train to find it: export samunet_checkpoints={quoted(folder.resolve())}")


def _print_table(folder: Path, published: dict[str, dict[str, Any]]) -> None:
    from samunet.models.downloads import format_bytes

    rows = [("name", "-encoder", "size", "licence", "file", f"in {folder}")]
    for name, facts in published.items():
        size, here, begun = facts["bytes"], facts["bytes_here"], facts["bytes_begun"]
        if here is not None:
            there = "yes" if size in (None, here) else f"another file: {format_bytes(here)}"
        else:
            there = "no" if begun is None else f"{format_bytes(begun)} of it"
        known = format_bytes(size) if size else "not known"
        rows.append((name, facts["encoder"], known, facts["licence"] or "not known", facts["file"].name, there))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


@command(
    "trained models in one file, for others to install",
    Flag("-d", dest="dataset", required=True, metavar="ID", help="27, 027 or Dataset027_ACDC"),
    Flag("-o", dest="output", type=Path, required=True, metavar="FILE", help="file to write: .zip"),
    Flag(
        "-c",
        dest="configurations",
        nargs="+",
        default=[],
        metavar="CONFIGURATION",
        help="configurations (default: all that are trained)",
    ),
    PLANS,
    Flag("-f", dest="folds", nargs="+", default=[], metavar="FOLD", help="folds (default: all that are finished)"),
    checkpoint(dest="checkpoints", nargs="+", default=["final"], help="which model files (default: final)"),
    Flag("-licence", metavar="NAME", help="under which the model is handed on, for example CC-BY-4.0"),
    Switch(
        "--not_strict",
        dest="strict",
        sets=False,
        help="leave out what is asked for and not trained; otherwise that is an error",
    ),
    Switch("--with_base", help="put the frozen pretrained weights in, and not only their name and hash"),
    Switch("--with_case_ids", help="keep names of cases, paths and logs"),
    Switch(
        "--exp_cv_preds",
        dest="with_masks",
        help="also the masks of the folds' validation cases (needs --with_case_ids)",
    ),
    Switch("--force", dest="overwrite", help="replace an existing file"),
    description="Write trained models of a dataset into one zip, with a manifest of hashes, licence and versions. "
    "Names of cases, paths and logs stay out of it.",
    examples=("samunet_export_model_to_zip -d 027 -o acdc.zip -licence CC-BY-4.0",),
    see="[Share a model](../guide/share.md)",
    go_on=NOTHING_WRITTEN,
    calls=("export_model",),
)
def export_model_to_zip(output: Path, **given: Any) -> None:
    from samunet import api

    api.export_model(output=output, **given)
    print(output)


@command(
    "a model that somebody exported",
    Flag("archive", metavar="zip", type=Path, help="the file"),
    Flag("-o", dest="folder", type=Path, metavar="FOLDER", help="where to (default: samunet_results)"),
    Switch(
        "--force",
        dest="overwrite",
        help="replace models of the same names, each with its whole folder; the dataset's other results stay",
    ),
    description="Install a model that samunet_export_model_to_zip wrote, and print its folders. Everything in the zip "
    "is checked first, and nothing in it is run.",
    examples=("samunet_install_pretrained_model_from_zip acdc.zip",),
    see="[Share a model](../guide/share.md#installing)",
    go_on="nothing was installed; start it again",
    calls=("install_model",),
)
def install_pretrained_model_from_zip(**given: Any) -> None:
    from samunet import api

    for folder in api.install_model(**given):
        print(folder)


@command(
    "a trained fold for programs without PyTorch",
    *MODEL,
    Flag("-o", dest="output", type=Path, required=True, metavar="FILE", help="file to write: .onnx; it must not exist"),
    Flag(
        "-i",
        dest="images",
        type=Path,
        nargs="+",
        metavar="INPUT",
        help="images to compare on (default: the dataset's training cases)",
    ),
    PLANS,
    checkpoint(),
    description="Write a trained fold as an ONNX graph, adapters merged, for any batch, and compare both on real "
    "slices: logits that differ by more than 1e-3 are an error, and nothing is written. Needs the packages of "
    "samunet[onnx].",
    examples=("samunet_export_onnx 027 2d 0 -o acdc.onnx",),
    see="[Share a model](../guide/share.md)",
    go_on=NOTHING_WRITTEN,
)
def export_onnx(output: Path, images: list[Path] | None, **given: Any) -> None:
    from samunet import api

    api.export_onnx(output=output, images=images[0] if images and len(images) == 1 else images, **given)
    print(output)


@command(
    "a trained fold as a plain SAM checkpoint",
    *MODEL,
    Flag(
        "-o",
        dest="output",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: .pth or .safetensors; it must not exist",
    ),
    PLANS,
    checkpoint(),
    description="Write a trained fold in SAM's layout, with LoRA folded into the weights. It has one mask token per "
    "class, background included. SAM's prediction of mask quality is not trained here: its last layer is zeros. "
    "Bottleneck adapters, the head detail and a projection of input channels have no place in that layout: an error.",
    examples=("samunet_merge_adapter 027 2d 0 -o sam_acdc.pth",),
)
def merge_adapter(**given: Any) -> None:
    from samunet import api

    print(api.merge_adapter(**given))


@command(
    "a checkpoint that SAMed published, as a model to predict with",
    Flag("file", type=Path, help=".pth file of SAMed or SAMed_s"),
    Flag("--encoder", default="vit_b", metavar="NAME", help="vit_b (default), vit_l or vit_h"),
    Flag("--image_size", type=int, default=512, metavar="PX", help="side of its input (default: 512)"),
    Flag("--num_classes", type=int, default=8, metavar="K", help="without background (default: 8)"),
    Flag(
        "-d",
        dest="dataset",
        default="Dataset900_SAMed",
        metavar="NAME",
        help="name for it in samunet_results (default: Dataset900_SAMed)",
    ),
    Flag("--labels", nargs="+", metavar="NAME", help="the classes' names, in order (default: class_1 and so on)"),
    Flag(
        "--intensity_range",
        nargs=2,
        type=finite,
        default=(-125.0, 275.0),
        metavar=("LOW", "HIGH"),
        help="values that become 0 and 1 (default: -125 275, SAMed's for CT)",
    ),
    Flag("--file_ending", default=".nii.gz", metavar="ENDING", help="of images (default: .nii.gz)"),
    description="Make a model folder of a checkpoint that SAMed or SAMed_s wrote or published. SAM's own checkpoint "
    "of the encoder must be in samunet_checkpoints. The network gives SAMed's logits; slices are scaled with their "
    "proportions kept and padded, where SAMed stretches them to a square.",
    examples=(
        "samunet_import_samed epoch_159.pth --encoder vit_b --image_size 512 --num_classes 8",
        "samunet_predict -i imagesTs -o preds -d Dataset900_SAMed",
    ),
)
def import_samed(dataset: str, intensity_range: list[float], **given: Any) -> None:
    from samunet import api

    print(f"model: {api.import_samed(dataset=dataset, intensity_range=tuple(intensity_range), **given)}")
    print(f"next, with a folder of images in place of FOLDER: samunet_predict -i FOLDER -o preds -d {quoted(dataset)}")
