"""Classes and box edges against BDD100K's own toolkit."""

import numpy as np
import pytest

from perception.evaluation._bdd100k_toolkit import toolkit_module
from perception.structures import (
    BDD_BOX_CLASSES,
    BDD_SEG_CLASSES,
    exclusive2inclusive,
    inclusive2exclusive,
)


@pytest.mark.parametrize(("task", "names"), [("det", BDD_BOX_CLASSES), ("sem_seg", BDD_SEG_CLASSES)])
def test_classes_are_the_toolkits(task: str, names: tuple[str, ...]) -> None:
    config = toolkit_module("bdd100k.common.utils").load_bdd100k_config(task)
    leaves = toolkit_module("scalabel.label.utils").get_leaf_categories(config.scalabel.categories)
    assert tuple(leaf.name for leaf in leaves) == names


def test_edges_are_scalabels() -> None:
    transforms = toolkit_module("scalabel.label.transforms")
    box2d = toolkit_module("scalabel.label.typing").Box2D(x1=1.5, y1=2.0, x2=1.5, y2=7.25)
    expected = transforms.box2d_to_xyxy(box2d)
    boxes = np.array([[1.5, 2.0, 1.5, 7.25]])
    assert inclusive2exclusive(boxes).tolist() == [expected]
    assert exclusive2inclusive(inclusive2exclusive(boxes)).tolist() == boxes.tolist()


def test_width_is_that_of_the_official_evaluation() -> None:
    transforms = toolkit_module("scalabel.label.transforms")
    box2d = toolkit_module("scalabel.label.typing").Box2D(x1=1.5, y1=2.0, x2=4.0, y2=7.25)
    x1, y1, x2, y2 = inclusive2exclusive(np.array([1.5, 2.0, 4.0, 7.25]))
    assert transforms.box2d_to_bbox(box2d) == [x1, y1, x2 - x1, y2 - y1]


def test_edges_keep_the_type() -> None:
    assert inclusive2exclusive(np.zeros((0, 4), np.float32)).dtype == np.float32
