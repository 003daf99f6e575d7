"""Makes the README's picture: the first screen of a run's report, as Chromium shows it.

    make demo && .venv/bin/python scripts/picture.py runs/demo/lstsd/_report/report.html docs/report.png

Needs chromium, and Pillow (in the extra `benchmark`).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIZE = (1280, 960)
COLOURS = 128  # enough for a page, and makes the file a third of the size


def main(page: Path, picture: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is missing: expected it on the PATH (Debian: apt install chromium).")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=20000"]
        flags += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={shot}"]
        subprocess.run([chromium, *flags, page.resolve().as_uri()], check=True, capture_output=True)
        with Image.open(shot) as screen:
            screen.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
