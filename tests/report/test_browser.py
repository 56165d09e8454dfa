"""The page in a real browser, where one is installed: no error, every figure drawn, the layer selector works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import earlybert as eb

from .conftest import run
from .test_page import FIGURES
from .test_pretraining import FIGURES as PRETRAINING
from .test_pretraining import FIGURES_DENSE as PRETRAINING_DENSE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """
<script>
(async () => {
  const pixels = async (image) => {
    const bitmap = new Image();
    bitmap.src = image.getAttribute("href") || image.getAttributeNS("http://www.w3.org/1999/xlink", "href");
    await bitmap.decode();
    const canvas = document.createElement("canvas");
    canvas.width = bitmap.width; canvas.height = bitmap.height;
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    return Array.from(context.getImageData(0, 0, bitmap.width, bitmap.height).data);
  };
  const found = {};
  found.figures = [...document.querySelectorAll("figure")].map((figure) => {
    const box = figure.querySelector("svg").getBoundingClientRect();
    return [figure.dataset.figure, box.width, box.height, figure.querySelectorAll("svg path").length];
  });
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const map = document.querySelector("figure[data-map=neurons]");
  const image = map.querySelector("image"), select = map.querySelector("select");
  select.focus();
  found.focused = document.activeElement === select;
  found.options = select.options.length;
  found.drawn = await pixels(image);
  const choose = async (value) => {
    select.value = value;
    select.dispatchEvent(new Event("change"));
    return await pixels(image);
  };
  found.second = await choose("2");
  found.said = map.querySelector("output").textContent;
  const box = image.getBoundingClientRect();
  const first = {clientX: box.left + 2, clientY: box.top + 2, bubbles: true};
  image.dispatchEvent(new PointerEvent("pointermove", first));
  found.corner = document.getElementById("tip").textContent;
  image.dispatchEvent(new PointerEvent("pointerleave"));
  found.all = await choose("0");
  const head = document.querySelector("[data-tip^='layer 1, head 1:']");
  head.dispatchEvent(new PointerEvent("pointermove", {clientX: 5, clientY: 5}));
  found.head = document.getElementById("tip").textContent;
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();
</script>
"""


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """The DOM after scripts, and what was logged."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=5000"),
            *flags,
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, done.stderr


def probed(page: Path, folder: Path, size: str) -> dict[str, Any]:
    """What the probe finds on a page in a window of such a size; nothing was logged on the console."""
    copy = folder / "probed.html"
    copy.write_text(page.read_text() + PROBE)
    dom, log = browse(copy, folder / "profile", f"--window-size={size}")
    assert "CONSOLE" not in log, log
    probe = re.search(r'<pre id="probe">(.*?)</pre>', dom, flags=re.DOTALL)
    assert probe is not None
    found: dict[str, Any] = json.loads(probe[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert all(width > 200 and height > 80 and paths > 4 for _, width, height, paths in found["figures"])
    assert found["wide"] <= 0  # nothing makes the page scroll sideways
    return found


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("size", ["1200,900", "500,900"])
def test_in_chromium(compared: Path, tmp_path: Path, size: str) -> None:
    found = probed(compared / "report.html", tmp_path, size)
    assert [name for name, *_ in found["figures"]] == FIGURES
    assert found["focused"] is True
    assert found["options"] == 1 + 3
    # The script draws all layers as matplotlib did, to a level of grey, and another layer otherwise.
    assert len(found["drawn"]) == len(found["all"]) == 4 * 12 * 12
    assert max(abs(a - b) for a, b in zip(found["drawn"], found["all"], strict=True)) <= 6
    assert found["second"] != found["all"]
    history = eb.History(compared / "history.bin")
    distances = history.distances("neurons", 0.4, steps=[1, 12], scope="global")[0, 1]
    assert found["said"].startswith("Layer 2: steps 1 and 12 differ by ")
    assert float(found["said"].split()[-1].rstrip(".")) == pytest.approx(distances[1], abs=0.003)
    # Left upper corner: the first step across, the last one up.
    assert found["corner"].startswith("after 1 and 12 steps: ")
    assert float(found["corner"].split()[-1]) == pytest.approx(distances[1], abs=0.003)
    state = "kept" if 0 in eb.Ticket.load(compared / "ticket.json").heads[0] else "removed"
    assert found["head"].startswith(f"layer 1, head 1: {state}, coefficient ")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_pre_training_in_chromium(pretrained: Path, tmp_path: Path) -> None:
    page = tmp_path / "side.html"
    assert run("report", pretrained / "ticket", pretrained / "dense", "--output", page) == 0
    found = probed(page, tmp_path, "500,900")
    assert [name for name, *_ in found["figures"]] == ["losses", *PRETRAINING, *PRETRAINING_DENSE]
    assert found["second"] != found["all"]
    history = eb.History(pretrained / "ticket" / "history.bin")
    distances = history.distances("neurons", 0.3, steps=[1, 12], scope="global")[0, 1]
    assert found["said"].startswith("Layer 2: steps 1 and 12 differ by ")
    assert float(found["said"].split()[-1].rstrip(".")) == pytest.approx(distances[1], abs=0.003)
    state = "kept" if 0 in eb.Ticket.load(pretrained / "ticket" / "ticket.json").heads[0] else "removed"
    assert found["head"].startswith(f"layer 1, head 1: {state}, coefficient ")
