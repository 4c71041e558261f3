"""What a training leaves to look at: one line per epoch in the log, and a plot."""

from __future__ import annotations

from pathlib import Path

from samunet.files import atomic_path


def epoch_line(entry: dict) -> str:
    """An epoch's entry as one line of text."""
    dice = "" if entry["dice"] is None else f", Dice {entry['dice']:.4f}"
    return (
        f"epoch {entry['epoch']:>4}: iteration {entry['iteration']:>6}, loss {entry['loss']:.4f}{dice}, "
        f"lr {entry['learning_rate']:.2e}, {entry['images_per_second']:.1f} images/s, "
        f"{entry['data_share']:.0%} of the time for data"
    )


def plot(log: list[dict], file: Path, monitored: str) -> None:
    """Draw loss, Dice and learning rate over iterations.

    Args:
        log: Entries of all epochs.
        file: A PNG, replaced atomically.
        monitored: What the Dice was measured on, for the legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    iterations = [entry["iteration"] for entry in log]
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(iterations, [entry["loss"] for entry in log], color="tab:blue", label="training loss")
    upper.set_ylabel("loss")
    right = upper.twinx()
    checked = [entry for entry in log if entry["dice"] is not None]
    right.plot([e["iteration"] for e in checked], [e["dice"] for e in checked], color="tab:green", label=monitored)
    right.set_ylabel("mean foreground Dice")
    right.set_ylim(0, 1)
    upper.legend(handles=[*upper.lines, *right.lines], loc="center right")
    lower.plot(iterations, [entry["learning_rate"] for entry in log], color="tab:orange")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("iteration")
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def progress_bar(show: bool):
    """A bar of percents for the whole training, with a text beside it; on a terminal, and if ``show``."""
    from tqdm import tqdm

    return tqdm(
        total=100,
        desc="Training",
        disable=None if show else True,
        bar_format="{percentage:3.0f}% |{bar:24}| {desc}",
        leave=False,
    )
