"""Drawn faces in the folder layout of CelebA, which itself may not be passed on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ATTRIBUTES = ("Bangs", "Male", "Smiling", "Young")


def write_faces(folder: Path, count: int) -> dict[str, dict[str, bool]]:
    """Draw faces of 44 x 54 pixels; returns the attributes of each by name."""
    random, table = np.random.default_rng(0), {}
    (folder / "img_align_celeba").mkdir(parents=True)
    for number in range(1, count + 1):
        row = {name: bool(value) for name, value in zip(ATTRIBUTES, random.integers(0, 2, 4), strict=True)}
        name = f"{number:06d}.jpg"
        _face(row, random).save(folder / "img_align_celeba" / name, quality=95)
        table[name] = row
    lines = [f"{name} " + " ".join("1" if row[each] else "-1" for each in ATTRIBUTES) for name, row in table.items()]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(ATTRIBUTES), *lines]) + "\n")
    return table


def _face(row: dict[str, bool], random: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (44, 54), tuple(int(value) for value in random.integers(120, 220, 3)))
    draw = ImageDraw.Draw(image)
    hair = (60, 40, 30) if row["Young"] else (190, 190, 190)
    x, y = random.integers(-2, 3, 2)
    draw.ellipse((6 + x, 4 + y, 38 + x, 50 + y), fill=hair)
    draw.ellipse((10 + x, 10 + y, 34 + x, 48 + y), fill=(235, 190, 160))
    if row["Bangs"]:
        draw.rectangle((11 + x, 10 + y, 33 + x, 19 + y), fill=hair)
    for eye in (17, 27):
        draw.ellipse((eye - 2 + x, 22 + y, eye + 2 + x, 25 + y), fill=(20, 20, 60))
    if row["Male"]:
        draw.rectangle((15 + x, 43 + y, 29 + x, 48 + y), fill=(90, 60, 50))
    curve = (16, 30, 28, 41) if row["Smiling"] else (16, 38, 28, 38)
    place = (curve[0] + x, curve[1] + y, curve[2] + x, curve[3] + y)
    draw.arc(place, 20, 160, fill=(160, 30, 40), width=2) if row["Smiling"] else draw.line(place, (160, 30, 40), 2)
    return image
