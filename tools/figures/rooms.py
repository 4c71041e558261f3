"""The rooms of the package, by the floors of `tests/test_architecture.py`: each imports only rooms below it."""

import ast
from pathlib import Path

from svg import GREY, Drawing

TEST = Path(__file__).resolve().parents[2] / "tests" / "test_architecture.py"
DOES = {
    "commands": "console scripts",
    "api": "the steps as functions",
    "selection": "the best model",
    "training": "trainer, losses",
    "sharing": "zip, ONNX",
    "report": "report.html",
    "inference": "predictor",
    "models": "a trained model on disk",
    "network": "encoders, heads",
    "planning": "rules, memory",
    "preprocessing": "from case to slices",
    "evaluation": "Dice, distances",
    "conversion": "own files to a dataset",
    "dataset": "layout, labels, splits",
    "imageio": "one reader per format",
}
COLOURS = ("blue", "orange", "green", "pink")
WIDTH, HEIGHT, STEP, GAP = 688, 66, 78, 8


def floors() -> list[list[str]]:
    """The rooms, from the top floor to the ground."""
    for node in ast.parse(TEST.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "FLOORS":
            found = [list(rooms) for rooms in map(ast.literal_eval, [ast.unparse(rooms) for rooms in node.value.elts])]
            order = {name: index for index, name in enumerate(DOES)}
            return [sorted(rooms, key=lambda name: (order.get(name, len(order)), name)) for rooms in found]
    raise SystemExit(f"{TEST} has no FLOORS")


def main() -> None:
    *upper, ground = [rooms for rooms in floors() if rooms != ["__main__"]]
    lines = [ground[index : index + 7] for index in range(0, len(ground), 7)]
    drawing = Drawing(16 + STEP * len(upper) + 40 + 28 * len(lines) + 60, "The rooms; each imports only rooms below it")
    for index, rooms in enumerate(upper):
        width = (WIDTH - GAP * (len(rooms) - 1)) / len(rooms)
        for place, room in enumerate(rooms):
            words = [room, *([DOES[room]] if room in DOES else [])]
            drawing.box(
                16 + place * (width + GAP), 16 + index * STEP, width, HEIGHT, words, COLOURS[index * 4 // len(upper)]
            )
    y = 16 + STEP * len(upper)
    drawing.box(16, y, WIDTH, 40 + 28 * len(lines), [""], "grey")
    drawing.text(360, y + 30, "ground floor", size=24, bold=True)
    for index, line in enumerate(lines):
        drawing.text(360, y + 58 + 28 * index, " · ".join(line), size=22)
    drawing.text(360, y + 40 + 28 * len(lines) + 32, "Each room imports only rooms below it.", size=22, colour=GREY)
    drawing.save("rooms")


if __name__ == "__main__":
    main()
