"""A screenshot of `report.html` of 004's cross-validation, by a headless Chromium.

Reads `samunet_raw`, `samunet_preprocessed` and `samunet_results`, in which fold 0 is trained: `samunet_train 004 2d 0`.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from svg import FIGURES

SIZE = (800, 1500)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"no browser: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder, "report.html"), Path(folder, "report.png")
        subprocess.run([sys.executable, "-m", "samunet", "report", "004", "-o", page], check=True)
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            size,
            f"--screenshot={picture}",
            page.as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)
        image = Image.open(picture).convert("RGB")
        image.quantize(128, dither=Image.Dither.NONE).save(FIGURES / "report.png", optimize=True)


if __name__ == "__main__":
    main()
