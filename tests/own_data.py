"""Small folders of user data: photographs, and pictures with label maps, where each class has its own colour."""

from pathlib import Path

import numpy as np
from PIL import Image

TABLE = """\
things: {ball: 40, box: 300}
stuff:
  sky: 1
  grass: [2, 3]  # wet and dry
  "no": 70       # a name that YAML takes for something else
"""
VALUES = {1: (40,), 2: (300,), 3: (1,), 4: (2, 3), 5: (70,)}
"""Class -> values of the label map."""
COLOURS = np.array([[0, 0, 0], [200, 40, 40], [230, 200, 60], [90, 150, 220], [60, 160, 60], [150, 150, 150]], np.uint8)
"""Class -> its colour in pictures; void is black."""


def classes_of(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Class map of a picture: sky over grass, a wall, a ball, two separate boxes, and a strip of void."""
    rng = np.random.default_rng([3, number])
    classes = np.full((height, width), 3)
    classes[int(height * rng.uniform(0.4, 0.6)) :] = 4
    classes[10:30, 5:40] = 5
    y, x = np.mgrid[:height, :width]
    classes[(y - 60) ** 2 + (x - rng.integers(60, 70)) ** 2 < 15**2] = 1
    classes[50:70, 90:100] = classes[50:70, 105:115] = 2
    classes[-3:] = 0
    return classes


def picture_of(classes: np.ndarray, number: int) -> np.ndarray:
    noise = np.random.default_rng([4, number]).normal(0, 6, (*classes.shape, 3))
    return np.clip(COLOURS[classes] + noise, 0, 255).astype(np.uint8)


def write_map(path: Path, values: np.ndarray) -> None:
    """Write a uint8 or uint16 (H, W) or an RGB uint8 (H, W, 3) array as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def index_values(classes: np.ndarray) -> np.ndarray:
    """Class map -> uint16 values of TABLE. All values of a class occur; the value of void is not in the table."""
    values = np.full(classes.shape, 65535, np.uint16)
    for c, (first, *more) in VALUES.items():
        values[classes == c] = first
        for value in more:
            values[(classes == c) & (np.indices(classes.shape).sum(0) % 2 == 1)] = value
    return values


def write_label_maps(folder: Path, num: int = 6, table: str = TABLE) -> Path:
    """FOLDER/classes.yaml, pictures/train|val, labels/train|val with 16-bit index values; a third is for validation."""
    for number in range(num):
        split = "val" if number % 3 == 2 else "train"
        classes = classes_of(number)
        path = folder / "pictures" / split / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture_of(classes, number)).save(path)
        write_map(folder / "labels" / split / f"{number}.png", index_values(classes))
    (folder / "classes.yaml").write_text(table)
    return folder


def write_photographs(folder: Path, num: int = 10) -> Path:
    """JPEG and PNG pictures at two depths, without labels."""
    for number in range(num):
        path = folder / ("holidays/2024" if number % 2 else "") / f"{number}.{'png' if number % 5 == 4 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture_of(classes_of(number), number)).save(path)
    return folder
