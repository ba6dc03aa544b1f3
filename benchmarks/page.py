"""How large is a page, and how fast is it redrawn? All foils of 1,000 classes of a photograph.

python benchmarks/page.py                # needs the extras demo and page, and a chromium on the path
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import skimage
from playwright.sync_api import sync_playwright

import ratherthan as rt

REDRAW = """async () => {
  const card = cards.values().next().value, foils = card.data.why.groups[0].foils, times = [];
  for (let i = 0; i < 100; i++) {
    const before = performance.now();
    card.set("foil", foils[(i * 7) % foils.length]);
    times.push(performance.now() - before);
  }
  return times;
}"""


def main() -> None:
    """Measure."""
    model = rt.load("zoo:efficientnet_lite0")
    photograph = Path(skimage.__file__).parent / "data" / "chelsea.png"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        began = time.perf_counter()
        rt.explain(model, photograph, foil="each").save(page)
        print(f"explained and written in {time.perf_counter() - began:.1f} s, {page.stat().st_size / 1e6:.2f} MB")
        with sync_playwright() as run:
            browser = run.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            opened = browser.new_page()
            began = time.perf_counter()
            opened.goto(page.as_uri())
            opened.locator("h2").first.wait_for()
            print(f"opened and drawn in {time.perf_counter() - began:.2f} s")
            times = opened.evaluate(REDRAW)
            print(f"another foil: median {statistics.median(times):.1f} ms, longest of 100 {max(times):.1f} ms")
            browser.close()


if __name__ == "__main__":
    main()
