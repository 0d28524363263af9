"""classes.yaml: its content is returned, and every mistake in it is one line that names file, line and fix."""

import numpy as np
import pytest

from jobs.data.sources.class_table import Pattern, read_table
from tests.own_data import TABLE, VALUES


def table(tmp_path, text: str):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    return read_table(path)


def test_things_come_first_and_every_value_maps_to_its_class(tmp_path):
    found = table(tmp_path, TABLE)
    names = [(c["id"], c["name"], c["isthing"]) for c in found.categories]
    assert names == [(1, "ball", 1), (2, "box", 1), (3, "sky", 0), (4, "grass", 0), (5, "no", 0)]
    assert not found.coloured and found.lookup.shape == (1 << 16,) and found.lookup.dtype == np.uint8
    assert {c: tuple(np.flatnonzero(found.lookup == c)) for c in VALUES} == VALUES
    assert (found.pictures, found.labels, found.instances) == (
        Pattern(text="pictures/*"),
        Pattern(text="labels/*"),
        None,
    )


@pytest.mark.parametrize(
    ("text", "file", "name", "map_of"),
    [
        ("labels/*", "labels/train/a.b.PNG", "train/a.b", "labels/train/a.b.png"),
        ("gtFine/*_ids", "gtFine/val/x_ids.png", "val/x", "gtFine/val/x_ids.png"),
        ("*", "a/b.png", "a/b", "a/b.png"),
        ("labels/*.PNG", "labels/a.PNG", "a", "labels/a.PNG"),
        ("*/v1.2/labels/*", "training/v1.2/labels/a/b.png", "training/a/b", "training/v1.2/labels/a/b.png"),
        ("maps/*2017/*_m", "maps/val2017/a_m.png", "val/a", "maps/val2017/a_m.png"),
        ("labels/*", "label/a.png", None, ""),
        ("labels/*", "labels/a.jpg", None, ""),
        ("labels/*_x", "labels/_x.png", None, ""),
        ("*/labels/*", "labels/a.png", None, ""),
    ],
)
def test_patterns_map_pictures_to_label_maps(text, file, name, map_of):
    pattern = Pattern(text=text)
    assert pattern.name_of(file, (".png",)) == name
    assert name is None or pattern.map_of(name) == map_of


def test_colours_map_to_classes(tmp_path):
    found = table(tmp_path, 'stuff: {sky: "#4682B4", road: ["#804080", "#000000"]}')
    assert found.coloured and found.lookup[0x4682B4] == 1 and found.lookup[0x804080] == found.lookup[0] == 2
    assert np.count_nonzero(found.lookup) == 3


@pytest.mark.parametrize(
    "pattern, file, endings, name",
    [
        ("img/*_img", "img/aachen/a_0_img.png", (".png", ".jpg"), "aachen/a_0"),
        ("img/*_img", "img/aachen/a_0_img.JPG", (".png", ".jpg"), "aachen/a_0"),
        ("img/*_img", "img/a_0_img.txt", (".png", ".jpg"), None),
        ("img/*_img", "img/a_0.png", (".png",), None),
        ("img/*_img", "other/a_img.png", (".png",), None),
        ("img/*_img", "img/_img.png", (".png",), None),
        ("img/*_img", "img/b/_img.png", (".png",), None),
        ("'*'", "a/b.c.png", (".png",), "a/b.c"),
        ("img/*.jpg", "img/a.jpg", (".png", ".jpg"), "a"),
        ("img/*.jpg", "img/a.png", (".png", ".jpg"), None),
    ],
)
def test_patterns_determine_the_name(tmp_path, pattern, file, endings, name):
    found = table(tmp_path, f"pictures: {pattern}\nstuff: {{a: 1}}")
    assert found.pictures.name_of(file, endings) == name


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "classes.yaml is empty; it lists the classes"),
        ("- car", "classes.yaml is not a class table"),
        ("things: [", "line 1: invalid YAML"),
        ("pictures: *_img\nstuff: {a: 1}", "invalid YAML"),  # a star without quotes is YAML's alias
        ("stuff: {}", "has 0 classes; give 1 to 254"),
        ("labels: labels/*", "has 0 classes"),
        ("stuff: {" + ", ".join(f"c{i}: {i}" for i in range(255)) + "}", "has 255 classes; give 1 to 254"),
        ("stuff:\n  sky: 1\n  sky: 2", "line 3: class sky is listed twice"),
        ("things: {sky: 1}\nstuff: {sky: 2}", "line 2: class sky is listed twice"),
        ("stuff:\n  sky: 1\n  sea: [2, 1]", "line 3: sea has the value 1 of sky; values must differ"),
        ('stuff: {a: "#0000ff", b: "#0000FF"}', "b has the value #0000ff of a"),
        ("stuff: {a: 1, b: 001}", "b has the value 1 of a"),
        ('stuff: {a: "#0000ff", b: 3}', "colours and index values; give one kind"),
        ("stuff:\n  sky: #4682b4", "line 2: sky has no value; give 0 to 65535, or a colour in quotes"),
        ("stuff: {sky: []}", "sky has no value"),
        ("stuff: {sky: blue}", "sky has the value 'blue'"),
        ("stuff: {sky: -1}", "sky has the value '-1'"),
        ("stuff: {sky: 65536}", "sky has the value '65536'"),
        ("stuff: {sky: {a: 1}}", "sky has the value"),
        ("stuff: {'': 1}", "a class without a name"),
        ("stuff: [sky]", "expected lines such as `car: 26`"),
        ("stuffs: {sky: 1}", "stuffs is unknown; the keys are pictures, labels, instances, things, stuff"),
        ("stuff: {a: 1}\nstuff: {b: 2}", "line 2: stuff is given twice"),
        ('labels: "*/*/*"\nstuff: {a: 1}', "if each split has a folder of its own"),
        ('labels: "*/a*b/c"\nstuff: {a: 1}', "give FOLDER/"),
        ("labels: labels\nstuff: {a: 1}", "labels is 'labels'; give FOLDER/\\*SUFFIX, such as labels/\\*"),
        ("labels: ../other/*\nstuff: {a: 1}", "labels is '../other/\\*'"),
        ("labels: /etc/*\nstuff: {a: 1}", "labels is '/etc/\\*'"),
        ("labels: a/*/b\nstuff: {a: 1}", "labels is"),
        ("labels: a*\nstuff: {a: 1}", "labels is"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        table(tmp_path, text)
    assert "\n" not in str(error.value) and "classes.yaml" in str(error.value)


def test_missing_and_too_large_tables_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mine.yaml does not exist; it lists the classes"):
        read_table(tmp_path / "mine.yaml")
    (tmp_path / "video.yaml").write_bytes(bytes(2_000_000))
    with pytest.raises(ValueError, match="more than 1048576 bytes; it is not a class table"):
        read_table(tmp_path / "video.yaml")
