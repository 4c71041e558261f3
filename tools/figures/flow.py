"""The flow: each step, the command that makes it, and the file it writes."""

from svg import GREY, Drawing

STEPS = [
    ("raw dataset", "", "imagesTr, labelsTr, dataset.json", "grey"),
    ("fingerprint", "samunet_plan_and_preprocess", "dataset_fingerprint.json, splits_final.json", "blue"),
    ("plans", "", "samunetPlans.json, each decision with its reason", "blue"),
    ("slices", "", "CASE.b2nd, normalised slices", "blue"),
    ("model", "samunet_train", "checkpoint_final.safetensors, progress.png", "orange"),
    ("masks", "samunet_predict", "a mask per case, in the image's geometry", "green"),
    ("scores", "samunet_evaluate_folder", "summary.json; samunet_report: report.html", "pink"),
]
TOP, STEP, HEIGHT = 14, 94, 52


def main() -> None:
    drawing = Drawing(TOP * 2 + STEP * len(STEPS) - (STEP - HEIGHT) + 28, "From a raw dataset to masks and scores")
    for index, (name, command, files, colour) in enumerate(STEPS):
        y = TOP + index * STEP
        drawing.box(16, y, 190, HEIGHT, [name], colour)
        drawing.text(228, y + 23, files, size=22, anchor="start")
        if index:
            drawing.arrow((111, y - STEP + HEIGHT), (111, y - 2))
        if command:
            drawing.text(228, y + 50, command, size=22, bold=True, anchor="start", colour=GREY)
    drawing.save("flow")


if __name__ == "__main__":
    main()
