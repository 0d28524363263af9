"""Sheets of pictures: pictures are unscaled and below their titles."""

import numpy as np

from egic.report import panels


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_png_keeps_every_pixel():
    x = picture(5, 7, 0)
    assert np.array_equal(panels.from_png(panels.png(x)), x)


def test_every_class_has_its_own_fixed_colour_and_void_is_black():
    classes = np.arange(135, dtype=np.uint8).reshape(1, -1)
    colours = panels.label_colours(classes)
    assert colours.shape == (1, 135, 3) and not colours[0, 0].any()
    assert len({tuple(c) for c in colours[0].tolist()}) == 135
    assert np.array_equal(colours, panels.label_colours(classes))


def test_pictures_of_different_sizes_are_unscaled_below_their_titles():
    rows = [[picture(20, 30, 1), picture(20, 30, 2)], [picture(40, 16, 3), picture(40, 16, 4)]]
    sheet = np.asarray(panels.panel(rows, ["original", "reconstruction"], gap=4))
    assert sheet.shape == (4 + 16 + 20 + 4 + 40 + 4, 4 + 30 + 4 + 30 + 4, 3)
    for top, left, x in ((20, 4, rows[0][0]), (20, 38, rows[0][1]), (44, 4, rows[1][0]), (44, 38, rows[1][1])):
        assert np.array_equal(sheet[top : top + x.shape[0], left : left + x.shape[1]], x)
    assert (sheet[4:16] < 128).any()  # dark pixels of the titles


def test_titles_are_larger_on_wide_pictures():
    def ink(width: int) -> np.ndarray:
        sheet = np.asarray(panels.panel([[np.full((8, width, 3), 255, np.uint8)]], ["original"]))
        return np.argwhere((sheet < 128).any(2))

    small, large = ink(200), ink(520)
    assert np.ptp(large, axis=0)[1] > 1.7 * np.ptp(small, axis=0)[1]


def test_every_picture_may_have_a_title():
    rows = [[picture(10, 60, 1)], [picture(10, 60, 2)]]
    sheet = np.asarray(panels.panel(rows, [["one"], ["two"]], gap=2))
    assert sheet.shape[0] == 2 * (16 + 10 + 2) + 2
    for top, x in ((2 + 16, rows[0][0]), (2 + 16 + 10 + 2 + 16, rows[1][0])):
        assert np.array_equal(sheet[top : top + 10, 2:62], x)
        assert (sheet[top - 14 : top] < 128).any()


def test_the_key_lists_existing_classes_by_area():
    label = np.array([[2, 2, 2, 0], [2, 0, 4, 4], [2, 0, 0, 2]], np.uint8)
    assert list(panels.key_of(label, ["road", "sky", "tree"])) == ["sky", "void", "fake"]


def test_a_key_is_wrapped_below_unchanged_pictures():
    x, colours = picture(20, 120, 1), {f"class number {i}": (10 * i, 0, 200) for i in range(1, 7)}
    bare, sheet = (np.asarray(panels.panel([[x]], ["original"], key=key)) for key in (None, colours))
    assert np.array_equal(sheet[: len(bare)], bare) and sheet.shape[1] == bare.shape[1]
    below = sheet[len(bare) :]
    for colour in colours.values():
        rows, columns = np.nonzero((below == colour).all(2))
        assert len(rows) >= 100  # a square of 11 x 11, without pixels that a letter covers
    lines = {int(np.nonzero((below == c).all(2))[0].min()) for c in colours.values()}
    assert len(lines) > 1
