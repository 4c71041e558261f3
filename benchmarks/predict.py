"""Time prediction: how seconds and memory grow with slices and classes, and samunet beside nnU-Net.

Without ``--paired``, volumes of several depths are predicted at several numbers of classes by models made on the fly
(the bundled encoder with random weights: what a prediction takes does not depend on what was learnt), each in a process
of its own that starts, loads the model, warms up on two slices and then predicts one NIfTI file into another:

    python benchmarks/predict.py --json result.json

* seconds: from the image file to the mask file;
* peak MiB: resident memory at its peak during these seconds, whole, and above what the process held before, when Python
  and the model were loaded. The image as float32 takes ``image MiB`` of it.

A straight line is fitted to each against the number of slices. Time is linear if all points lie near the line; memory
is flat apart from the volume if the line's slope is a small number of copies of a slice, whatever the classes.

With ``--folds``, one volume is predicted by models of so many folds, with test-time augmentation and without, to see
what an ensemble costs: seconds per volume, memory when the model is loaded, and the peak while it predicts:

    python benchmarks/predict.py --folds 1 5 --slices 20
    python benchmarks/predict.py --folds 1 5 --slices 2 --encoder vit_b --image_size 448

Folds of the small encoder have all weights of their own; folds of the others (here with random weights as their base)
share them and have LoRA and a head each.

With ``--paired``, the same folder of images is predicted by a trained samunet model and by nnU-Net's, in turn, the
order swapped from one repeat to the next, with test-time augmentation and without, by the commands that users type:

    samunet_predict -i IMAGES -o OUT -d ... -f 0
    nnUNetv2_predict_from_modelfolder -i IMAGES -o OUT -m MODEL -f 0 -device cpu -npp 1 -nps 1

    python benchmarks/predict.py --paired results/Dataset027_ACDC/samunetTrainer__samunetPlans__2d \\
        --images /data/raw/Dataset027_ACDC/imagesTs --nnunet-bin /venvs/nnunet/bin --nnunet-raw /data/raw

``--nnunet-model`` takes the folder of a trained nnU-Net model. Without it, nnU-Net plans the dataset of the images
(``--nnunet-raw``) and an untrained checkpoint of its 2d configuration is saved, which takes as long to predict with.
Seconds are wall seconds of the whole command, Python's start included; memory is as in benchmarks/preprocess.py. Linux
only (``/proc``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from timed import MIB, BenchmarkError, last_lines, machine, spread, timed

CHECKPOINT_SCRIPT = """
import shutil, sys, torch
from pathlib import Path
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
pre = Path(sys.argv[1])
plans, dataset = load_json(str(pre / "nnUNetPlans.json")), load_json(str(pre / "dataset.json"))
trainer = nnUNetTrainer(plans | {"continue_training": False}, "2d", 0, dataset, device=torch.device("cpu"))
# Whether cases were stored as blosc2 or otherwise is told from the endings of what lies there.
(pre / "nnUNetPlans_2d").mkdir()
(pre / "nnUNetPlans_2d" / "a.b2nd").touch()
trainer.initialize()
# Sets the axes that the checkpoint lets prediction mirror.
trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
model = Path(trainer.output_folder_base)
shutil.copy(pre / "nnUNetPlans.json", model / "plans.json")
shutil.copy(pre / "dataset.json", model / "dataset.json")
trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
print("MODEL", model)
"""


def make_model(
    folder: Path, num_classes: int, plane: int, folds: int = 1, encoder: str = "small", image_size: int | None = None
) -> Path:
    """A model folder whose folds have random weights.

    Args:
        folder: Where the model's folder is made.
        num_classes: Background included.
        plane: Pixels of a slice's side in the volumes it is planned for.
        folds: How many.
        encoder: The bundled one, or one of SAM's, whose base is written beside the model.
        image_size: Long side of the network's input; None for the planner's.
    """
    import torch

    from samunet.dataset.description import description_from_json
    from samunet.encoders import encoder_facts
    from samunet.files import write_json
    from samunet.models.checkpoint import save_model
    from samunet.models.folder import build_network, model_folder_name
    from samunet.planning.fingerprint import CaseFingerprint, Fingerprint
    from samunet.planning.planner import PlannerOptions, plan
    from samunet.plans import IntensityStatistics

    labels = {"background": 0, **{f"structure {value}": value for value in range(1, num_classes)}}
    raw = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    description = description_from_json(raw, "dataset.json")
    spacing, shape = [3.0, 1.0, 1.0], [20, plane, plane]
    nowhere = {str(value): [] for value in range(1, num_classes)}
    case = CaseFingerprint(
        spacing=spacing, shape=shape, shape_after_crop=shape, class_voxels={}, class_faces={},
        class_centres=nowhere, class_spreads=nowhere, integer=True, minimum=[0.0], maximum=[1000.0],
    )  # fmt: skip
    statistics = IntensityStatistics(
        mean=500.0, median=500.0, std=100.0, min=0.0, max=1000.0, percentile_00_5=250.0, percentile_99_5=750.0
    )
    fingerprint = Fingerprint(
        spacings=[spacing], shapes_after_crop=[shape], foreground_intensity_properties_per_channel={"0": statistics},
        median_relative_size_after_cropping=1.0, cases={"a": case}, asymmetry=[0.0, 0.0, 0.0], empty_cases=[],
        physical_spacing=True, source="benchmark",
    )  # fmt: skip
    plans = plan(
        "Dataset999_Benchmark", description, fingerprint, PlannerOptions(encoder=encoder, image_size=image_size)
    )
    configuration = plans.configuration("2d")
    network = configuration.networks[encoder]
    model = folder / f"{num_classes}_classes_{folds}_folds" / model_folder_name(plans.plans_name, "2d")
    model.mkdir(parents=True)
    plans.write(model / "plans.json")
    write_json(model / "dataset.json", raw)
    base = random_base(folder, network, configuration, description) if encoder_facts(encoder).is_sam else None
    for fold in range(folds):
        torch.manual_seed(fold)
        built = build_network(configuration, network, description, base)
        for name, parameter in built.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.01)
        (model / f"fold_{fold}").mkdir()
        write_json(model / f"fold_{fold}" / "run.json", {"encoder": encoder, "base": base.record if base else None})
        save_model(model / f"fold_{fold}", built, "final")
    return model


def random_base(folder: Path, network, configuration, description):
    """Base weights of a SAM encoder that was never trained, in a file as a checkpoint would be."""
    import torch
    from safetensors.torch import save_file

    from samunet.adaptations import FullPlan
    from samunet.models.folder import build_network
    from samunet.models.pretrained import pretrained_weights

    torch.manual_seed(0)
    whole = build_network(configuration, network.changed(adaptation=FullPlan()), description, None)
    state = {name.removeprefix("head."): value.contiguous() for name, value in whole.state_dict().items()}
    wanted = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
    save_file({name: value for name, value in state.items() if name.startswith(wanted)}, folder / "base.safetensors")
    return pretrained_weights(network.encoder, None, folder / "base.safetensors")


def make_volume(folder: Path, depth: int, plane: int) -> Path:
    """A NIfTI file of ``depth`` square slices: a bright ellipsoid in noise, int16."""
    from nibabel import Nifti1Image, save

    rng, file = np.random.default_rng(0), folder / f"{depth}_slices_0000.nii.gz"
    volume = np.empty((depth, plane, plane), dtype=np.int16)
    y, x = np.mgrid[-1 : 1 : plane * 1j, -1 : 1 : plane * 1j]
    for z in range(depth):
        inside = y**2 + x**2 + (2 * z / depth - 1) ** 2 < 0.5
        volume[z] = rng.normal(300, 50, (plane, plane)) + 400 * inside
    save(Nifti1Image(volume.T, np.diag([1.0, 1.0, 3.0, 1.0])), file)
    return file


def predict_point(model: Path, file: Path, tta: bool) -> dict[str, float]:
    """What ``--point`` does in a process of its own: predict one file and report."""
    from nibabel import load

    from samunet.dataset.cases import Case
    from samunet.inference.options import PredictionOptions
    from samunet.inference.predictor import Predictor

    shape = load(file).shape[::-1]
    predictor = Predictor.from_folder(model, options=PredictionOptions(device="cpu", tta=tta))
    predictor.predict_array(np.random.default_rng(0).normal(size=(1, 2, *shape[1:])), (3.0, 1.0, 1.0))
    with tempfile.TemporaryDirectory() as output:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
        start = time.perf_counter()
        predictor.predict_cases({"a": Case("a", (file,), None)}, Path(output), progress=False)
        seconds = time.perf_counter() - start
    peak = _resident("VmHWM")
    image = 4 * float(np.prod(shape)) / MIB
    memory = {"loaded_mib": before, "peak_mib": peak, "above_start_mib": peak - before}
    return {"seconds": seconds, **memory, "image_mib": image}


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def fit(slices: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Straight line by least squares, and the largest distance from it as a share of the value there."""
    slope, start = np.polyfit(slices, values, 1)
    line = start + slope * np.asarray(slices)
    return {
        "start": float(start),
        "per_slice": float(slope),
        "largest_deviation": float(np.max(np.abs(line - values) / np.asarray(values))),
    }


def growth(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure every depth at every number of classes and print the tables."""
    tta = not arguments.disable_tta
    print(f"{arguments.plane} x {arguments.plane} pixels, test-time augmentation {'on' if tta else 'off'}")
    print(
        f"{'classes':>8}{'slices':>8}{'seconds':>10}{'s / slice':>11}{'peak MiB':>10}{'above start':>13}"
        f"{'image MiB':>11}"
    )
    points, fits = [], {}
    with tempfile.TemporaryDirectory(prefix="predict_benchmark_") as name:
        folder = Path(name)
        volumes = {depth: make_volume(folder, depth, arguments.plane) for depth in arguments.slices}
        for classes in arguments.classes:
            model = make_model(folder, classes, arguments.plane)
            for depth, file in volumes.items():
                point = {"classes": classes, "slices": depth, **measured(model, file, not arguments.disable_tta)}
                points.append(point)
                print(
                    f"{classes:>8}{depth:>8}{point['seconds']:>10.2f}{point['seconds'] / depth:>11.4f}"
                    f"{point['peak_mib']:>10.0f}{point['above_start_mib']:>13.0f}{point['image_mib']:>11.1f}",
                    flush=True,
                )
            own = [point for point in points if point["classes"] == classes]
            if len(own) > 1:
                slices = [point["slices"] for point in own]
                fits[classes] = {
                    key: fit(slices, [point[key] for point in own]) for key in ("seconds", "above_start_mib")
                }
    slice_mib = 4 * arguments.plane**2 / MIB
    for classes, lines in fits.items():
        seconds, memory = lines["seconds"], lines["above_start_mib"]
        memory["image_copies"] = memory["per_slice"] / slice_mib
        print(
            f"{classes} classes: {seconds['start']:.2f} s + {seconds['per_slice']:.4f} s per slice, at most "
            f"{seconds['largest_deviation']:.0%} off; {memory['start']:.0f} MiB + {memory['image_copies']:.2f} "
            "copies of the image"
        )
    return {"plane": arguments.plane, "tta": tta, "points": points, "fits": fits}


def measured(model: Path, file: Path, tta: bool) -> dict[str, float]:
    """:func:`predict_point` in a process of its own."""
    command = [sys.executable, __file__, "--point", str(model), str(file), *([] if tta else ["--disable_tta"])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def by_folds(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure every number of folds with test-time augmentation and without, and print the table."""
    depth, plane = arguments.slices[0], arguments.plane
    print(f"{arguments.encoder}, {depth} slices of {plane} x {plane} pixels, {arguments.classes[0]} classes")
    print(f"{'folds':>6}{'tta':>5}{'s / volume':>12}{'loaded MiB':>12}{'peak MiB':>10}{'stored MiB':>12}")
    points = []
    with tempfile.TemporaryDirectory(prefix="predict_benchmark_") as name:
        folder = Path(name)
        file = make_volume(folder, depth, plane)
        for folds in arguments.folds:
            model = make_model(folder, arguments.classes[0], plane, folds, arguments.encoder, arguments.image_size)
            stored = sum(path.stat().st_size for path in model.glob("fold_*/**/*") if path.is_file()) / MIB
            for tta in (False, True):
                point = {
                    "folds": folds,
                    "tta": tta,
                    "stored_mib": stored,
                    **measured(model, file, tta),
                }
                points.append(point)
                print(
                    f"{folds:>6}{'on' if tta else 'off':>5}{point['seconds']:>12.2f}{point['loaded_mib']:>12.0f}"
                    f"{point['peak_mib']:>10.0f}{stored:>12.1f}",
                    flush=True,
                )
    return {"encoder": arguments.encoder, "plane": plane, "slices": depth, "points": points}


def untrained_nnunet(bin_folder: Path, raw: Path, dataset: str, folder: Path) -> Path:
    """An nnU-Net model folder of its 2d configuration whose checkpoint was never trained."""
    environment = _nnunet_environment(raw, folder)
    identifier = str(int(dataset[len("Dataset") :].partition("_")[0]))
    for command in (
        [str(bin_folder / "nnUNetv2_plan_and_preprocess"), "-d", identifier, "-npfp", "2", "--no_pp"],
        [str(bin_folder / "python"), "-c", CHECKPOINT_SCRIPT, str(folder / "preprocessed" / dataset)],
    ):
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise BenchmarkError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return Path(done.stdout.rsplit("MODEL ", 1)[1].strip())


def _nnunet_environment(raw: Path | None, folder: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    for part in ("raw", "preprocessed", "results"):
        (folder / part).mkdir(exist_ok=True)
        environment[f"nnUNet_{part}"] = str(folder / part)
    return environment | ({"nnUNet_raw": str(raw)} if raw else {})


def predicted(command: list[str], environment: dict[str, str], output: Path) -> dict[str, float]:
    """Run a command that predicts into ``output``: wall and CPU seconds, peak memory, number of masks."""
    log = output.with_suffix(".log")
    took = timed(command, environment, log)
    masks = len(list(output.glob("*.nii.gz")) + list(output.glob("*.png")))
    if took.status or not masks:
        raise BenchmarkError(f"{' '.join(command)} ended with status {took.status}, {masks} masks:\n{last_lines(log)}")
    return {
        "wall_seconds": took.wall_seconds,
        "cpu_seconds": took.cpu_seconds,
        "peak_rss_mib": took.peak_rss_mib,
        "masks": masks,
    }


def paired(arguments: argparse.Namespace) -> dict[str, object]:
    """Predict one folder with both programs in turn and print the table."""
    model = arguments.paired.absolute()
    if not (model / "plans.json").is_file() or model.name.count("__") != 2:
        raise BenchmarkError(f"{model} is no model folder: .../results/DatasetXXX_Name/samunetTrainer__PLANS__2d")
    dataset, (_, plans, configuration) = model.parent.name, model.name.split("__")
    ours = [str(arguments.samunet_bin / "samunet_predict"), "-i", str(arguments.images), "-d", dataset]
    ours += ["-p", plans, "-c", configuration, "-f", arguments.fold, "-device", "cpu"]
    runs = []
    with tempfile.TemporaryDirectory(prefix="predict_benchmark_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environments = {"samunet": os.environ | {"samunet_results": str(model.parent.parent)}}
        commands = {"samunet": ours}
        if arguments.nnunet_bin is not None:
            environments["nnU-Net"] = _nnunet_environment(arguments.nnunet_raw, folder)
            rival = arguments.nnunet_model
            if rival is None:
                print(f"nnU-Net: planning {dataset} and saving an untrained checkpoint ...", flush=True)
                rival = untrained_nnunet(arguments.nnunet_bin, arguments.nnunet_raw, dataset, folder)
            commands["nnU-Net"] = [
                str(arguments.nnunet_bin / "nnUNetv2_predict_from_modelfolder"), "-i", str(arguments.images),
                "-m", str(rival), "-f", arguments.nnunet_fold, "-device", "cpu", "-npp", "1", "-nps", "1",
            ]  # fmt: skip
        for contender, command in commands.items():
            print(f"{contender}: {' '.join(command)}")
            if not os.access(command[0], os.X_OK):
                raise BenchmarkError(f"{command[0]} is not there or cannot be run")
        for path in sorted(arguments.images.iterdir()):
            path.read_bytes()  # no run pays for a cold disk
        for tta in (True, False):
            for repeat in range(arguments.repeats):
                for contender in list(commands)[:: 1 if repeat % 2 == 0 else -1]:
                    output = folder / "out"
                    shutil.rmtree(output, ignore_errors=True)
                    output.mkdir()
                    command = [*commands[contender], "-o", str(output), *([] if tta else ["--disable_tta"])]
                    run = predicted(command, environments[contender], output)
                    runs.append({"contender": contender, "tta": tta, "repeat": repeat + 1, **run})
                    print(
                        f"tta {'on ' if tta else 'off'} repeat {repeat + 1} {contender:<8} wall "
                        f"{run['wall_seconds']:.1f} s, CPU {run['cpu_seconds']:.1f} s, peak RSS "
                        f"{run['peak_rss_mib']:.0f} MiB, {run['masks']} masks",
                        flush=True,
                    )
    if len({run["masks"] for run in runs}) > 1:
        raise BenchmarkError(f"the runs wrote different numbers of masks: {sorted({run['masks'] for run in runs})}")
    return {"model": str(model), "images": str(arguments.images), "runs": runs, "summary": summarise(runs)}


def summarise(runs: list[dict]) -> dict[str, dict]:
    """Spread of wall seconds by test-time augmentation and contender, and of the ratio in each repeat; prints it."""
    summary: dict[str, dict] = {}
    print(f"\n{'wall s, min / median / max':<28}{'samunet':>24}{'nnU-Net':>24}{'nnU-Net / samunet':>24}")
    for tta in (True, False):
        walls = {
            name: [run["wall_seconds"] for run in sorted(runs, key=lambda run: run["repeat"])
                   if run["contender"] == name and run["tta"] == tta]
            for name in ("samunet", "nnU-Net")
        }  # fmt: skip
        walls["nnU-Net / samunet"] = [rival / own for own, rival in zip(walls["samunet"], walls["nnU-Net"])]
        row = {name: spread(values) for name, values in walls.items() if values}
        summary["tta on" if tta else "tta off"] = row
        cells = [" / ".join(f"{value:.2f}" for value in row[name].values()) if name in row else "-" for name in walls]
        print(f"{'tta on' if tta else 'tta off':<28}" + "".join(f"{cell:>24}" for cell in cells))
    return summary


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time prediction; see the top of this file.")
    parser.add_argument("--slices", type=int, nargs="+", default=[20, 60, 200, 600], metavar="N", help="depths")
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 40], metavar="N", help="with background")
    parser.add_argument("--plane", type=int, default=256, metavar="N", help="pixels of a slice's side (default: 256)")
    parser.add_argument("--disable_tta", action="store_true", help="no test-time augmentation (without --paired)")
    parser.add_argument("--folds", type=int, nargs="+", metavar="N", help="numbers of folds, for example 1 5")
    parser.add_argument(
        "--encoder", default="small", metavar="NAME", help="with --folds: small, vit_b, vit_l, vit_h or vit_t"
    )
    parser.add_argument("--image_size", type=int, metavar="PX", help="with --folds: network's input (default: planned)")
    parser.add_argument("--paired", type=Path, metavar="MODEL_FOLDER", help="trained samunet model: beside nnU-Net")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="with --paired: what to predict")
    parser.add_argument("--fold", default="0", metavar="N", help="with --paired: samunet's fold (default: 0)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="with --paired: runs of each (default: 3)")
    parser.add_argument(
        "--samunet-bin", type=Path, default=Path(sys.executable).parent, metavar="DIR", help="folder of samunet_predict"
    )
    parser.add_argument("--nnunet-bin", type=Path, metavar="DIR", help="folder of nnU-Net's commands")
    parser.add_argument("--nnunet-model", type=Path, metavar="FOLDER", help=".../nnUNetTrainer__nnUNetPlans__2d")
    parser.add_argument("--nnunet-fold", default="0", metavar="N", help="fold of --nnunet-model (default: 0)")
    parser.add_argument("--nnunet-raw", type=Path, metavar="FOLDER", help="raw datasets, without --nnunet-model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--point", type=Path, nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.paired and (parsed.images is None or not parsed.images.is_dir()):
        parser.error("--paired needs the folder of images to predict: --images FOLDER")
    if parsed.nnunet_bin and parsed.nnunet_model is None and parsed.nnunet_raw is None:
        parser.error("nnU-Net needs --nnunet-model FOLDER, or --nnunet-raw FOLDER to plan the dataset of the model")
    if parsed.folds and min(parsed.folds) < 1:
        parser.error("--folds must be at least 1")
    if min(*parsed.slices, *parsed.classes, parsed.repeats, parsed.plane) < 1 or min(parsed.classes) < 2:
        parser.error("--slices, --plane and --repeats must be at least 1, --classes at least 2")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parsed = parse(arguments)
    try:
        if parsed.point:
            print(json.dumps(predict_point(*parsed.point, not parsed.disable_tta)))
            return 0
        here = machine()
        print(
            f"{datetime.now().astimezone().isoformat(timespec='seconds')}, {here['cpu']}, {here['cores_usable']} of "
            f"{here['cores']} cores usable, {here['memory_gib']} GiB, load {here['load_average_before']:.2f}, "
            f"{here['thread_variables'] or 'no thread variables'}"
        )
        result = paired(parsed) if parsed.paired else by_folds(parsed) if parsed.folds else growth(parsed)
        if parsed.json is not None:
            parsed.json.write_text(json.dumps({"machine": here, **result}, indent=2) + "\n", encoding="utf-8")
            print(f"Written: {parsed.json}")
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
