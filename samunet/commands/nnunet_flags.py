"""nnU-Net's flags that samunet does not have, and what it has instead."""

from __future__ import annotations

_MEASURING = ("samunet_plan_and_preprocess", "samunet_extract_fingerprint")
_PLANNING = ("samunet_plan_and_preprocess", "samunet_plan_experiment")
_WORKING = (*_MEASURING, "samunet_preprocess")
_PREDICTING = ("samunet_predict", "samunet_predict_from_modelfolder")
_CHOOSING = (
    "samunet_predict", "samunet_accumulate_crossval_results", "samunet_find_best_configuration",
    "samunet_export_model_to_zip",
)  # fmt: skip

# By flag: the commands whose namesakes in nnU-Net have it, what samunet has instead, and what to type.
_INSTEAD: dict[str, list[tuple[tuple[str, ...], str, str]]] = {
    "-fpe": [(_MEASURING, "there is one way to measure a dataset", "leave it out")],
    "-npfp": [(("samunet_plan_and_preprocess",), "one number of processes serves all steps", "use -np N")],
    "--no_pbar": [(_WORKING, "progress bars go to stderr", "leave it out, or add 2> log.txt")],
    "-pl": [
        (
            _PLANNING,
            "there is one planner, and flags change its decisions",
            "use -gpu_memory_target, -encoder, -image_size or -adaptation",
        )
    ],
    "-preprocessor_name": [(_PLANNING, "there is one way to preprocess, and the plans say how", "leave it out")],
    "-tr": [
        (
            ("samunet_train",),
            "there are no classes of trainers; flags change a training",
            "use --epochs, --iterations, --time_budget, --lr or --batch_size",
        ),
        (_CHOOSING, "models are told apart by configuration (-c) and plans (-p)", "leave it out"),
    ],
    "-num_gpus": [
        (
            ("samunet_train",),
            "a fold trains on one device, and several folds side by side",
            "use -device cuda:0,cuda:1 and name several folds",
        )
    ],
    "--use_compressed": [
        (("samunet_train",), "stored slices are always compressed and read as they are", "leave it out")
    ],
    "--disable_checkpointing": [
        (("samunet_train",), "checkpoints hold what trains and cost little time", "leave it out")
    ],
    "-prev_stage_predictions": [(_PREDICTING, "there is no cascade, so no stage before", "leave it out")],
    "-npp": [(_PREDICTING, "cases are prepared and predicted in turn", "leave it out, or use -num_parts and -part_id")],
    "-nps": [(_PREDICTING, "masks are written in turn", "leave it out, or use -num_parts and -part_id")],
    "--disable_progress_bar": [(_PREDICTING, "progress bars go to stderr", "leave it out, or add 2> log.txt")],
    "--not_on_device": [
        (_PREDICTING, "logits exist for one batch of slices and need little memory", "leave it out, or use -device cpu")
    ],
    "-pp_pkl_file": [
        (
            ("samunet_apply_postprocessing",),
            "postprocessing is read from JSON, since a pickle can run code",
            "use -pp_json postprocessing.json",
        )
    ],
    "-il": [
        (
            ("samunet_evaluate_simple",),
            "an ignore label is known from dataset.json",
            "use samunet_evaluate_folder with -djfile dataset.json",
        )
    ],
}


def instead_of(command: str, flag: str) -> tuple[str, str] | None:
    """What ``command`` says of a flag that its namesake in nnU-Net has: a sentence, and what to type."""
    for commands, sentence, hint in _INSTEAD.get(flag, ()):
        if command in commands:
            return f"nnU-Net's {flag} is not there: {sentence}", hint
    return None
