"""What a training leaves to look at: its curve as JSON, CSV and text, and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.files import atomic_path, write_json, write_text
from samunet.training.schedule import format_duration
from samunet.training.state import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("epoch", "iteration", "elapsed", "loss", "dice", "learning_rate", "images_per_second", "data_share")


def point_line(entry: dict) -> str:
    """A point of the curve as one line of text."""
    parts = [f"epoch {entry['epoch']:>4}: iteration {entry['iteration']:>6}"]
    if entry["loss"] is not None:
        parts.append(f"loss {entry['loss']:.4f}")
    if entry["dice"] is not None:
        parts.append(f"Dice {entry['dice']:.4f}")
    if entry["loss"] is not None:
        parts.append(f"lr {entry['learning_rate']:.2e}, {entry['images_per_second']:.1f} images/s")
        parts.append(f"{entry['data_share']:.0%} of the time for data")
    return ", ".join(parts)


def write_logs(log: list[dict], folder: Path, title: str, monitored: str, *, picture: bool = True) -> None:
    """Write the curve so far as ``training_log.json``, ``.csv`` and ``.txt``, and as ``progress.png`` if asked to.

    All are written whole from the same points, so they agree, also after a training went on from a checkpoint.

    Args:
        log: Points; ``loss`` is the mean since the one before, ``dice`` None where no case was checked.
        folder: The fold's folder.
        title: Dataset, configuration, fold and encoder.
        monitored: What the Dice was measured on.
        picture: Whether to draw it as well, which takes a second.
    """
    write_json(folder / "training_log.json", log)
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    write_text(folder / "training_log.csv", table.getvalue())
    head = f"{title}\nDice: mean over classes of {monitored}; loss: mean since the line before\n"
    lines = "".join(f"{entry['elapsed']:>9.1f} s  {point_line(entry)}\n" for entry in log)
    write_text(folder / "training_log.txt", head + lines)
    if picture:
        plot(log, folder / "progress.png", title, monitored)


def plot(log: list[dict], file: Path, title: str, monitored: str) -> None:
    """Draw Dice, loss and learning rate over iterations.

    Args:
        log, title, monitored: See :func:`write_logs`.
        file: A PNG, replaced atomically.
    """
    with drawn(file, (10, 9)) as figure:
        figure.suptitle(title.replace("$", r"\$"), fontsize=13, fontweight="bold")
        upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=(4, 3, 1.4))
        checked = [entry for entry in log if entry["dice"] is not None]
        upper.set_title(f"Dice of {monitored}, mean over classes", fontsize=10, loc="left")
        if checked:
            upper.plot(*_points(checked, "dice"), color="tab:green", marker="o", markersize=3)
            best = max(checked[1:] or checked, key=lambda entry: entry["dice"])  # before the first update is no model
            upper.axhline(best["dice"], color="tab:green", linewidth=0.8, linestyle=":")
            upper.plot(best["iteration"], best["dice"], color="tab:green", marker="*", markersize=13, linestyle="none")
            upper.annotate(
                f"best {best['dice']:.3f} at iteration {best['iteration']}",
                (1, best["dice"]), (-4, 5 if best["dice"] < 0.92 else -14), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", fontsize=10,
            )  # fmt: skip
        else:
            upper.text(0.5, 0.5, "no foreground to check", transform=upper.transAxes, ha="center", va="center")
        upper.set_ylim(0, 1)
        upper.set_ylabel("Dice (0 to 1)")
        trained = [entry for entry in log if entry["loss"] is not None]
        middle.set_title("training loss, mean since the point before", fontsize=10, loc="left")
        middle.plot(*_points(trained, "loss"), color="tab:blue", marker=".", markersize=4)
        middle.set_ylabel("loss")
        lower.set_title("learning rate", fontsize=10, loc="left")
        lower.plot(*_points(trained, "learning_rate"), color="tab:orange")
        lower.set_ylabel("per update")
        lower.set_ylim(bottom=0)
        minutes = log[-1]["elapsed"] / 60
        lower.set_xlabel(f"iteration (one update each; the {log[-1]['iteration']} so far took {minutes:.1f} min)")
        for axes in (upper, middle, lower):
            axes.grid(color="#d5dae0", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)


@contextmanager
def drawn(file: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of so many inches, which becomes a PNG; replaced atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _points(entries: list[dict], key: str) -> tuple[list[int], list[float]]:
    return [entry["iteration"] for entry in entries], [entry[key] for entry in entries]


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


def update_bar(bar, progress: float, state: Progress) -> None:
    """Show how far a training is (``progress``, 0 to 1), its last loss and Dice, and the time left."""
    shown = [f"iteration {state.iteration}"]
    for key, name in (("loss", "loss"), ("dice", "Dice")):
        last = next((entry[key] for entry in reversed(state.log) if entry[key] is not None), None)
        shown += [f"{name} {last:.3f}"] * (last is not None)
    left = state.elapsed * (1 - progress) / max(progress, 1e-6)
    bar.n = 100 * progress
    bar.set_description_str(", ".join([*shown, f"{format_duration(left)} left"]))
