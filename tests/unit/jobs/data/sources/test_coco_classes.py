"""The category table, compared with COCO's published facts."""

from jobs.data.sources.coco_classes import CATEGORIES


def test_the_table_has_cocos_categories():
    ids = [category.id for category in CATEGORIES]
    assert len(ids) == 133 and ids == sorted(set(ids)) and (ids[0], ids[-1]) == (1, 200)
    assert sum(category.isthing for category in CATEGORIES) == 80
    names = {category.id: (category.name, category.isthing) for category in CATEGORIES}
    assert names[11] == ("fire hydrant", 1) and names[90] == ("toothbrush", 1)
    assert names[92] == ("banner", 0) and names[187] == ("sky-other-merged", 0)
    assert len(set(names.values())) == 133
