"""Which comparison a fixture needs, told by what it holds."""

from collections.abc import Callable
from typing import NamedTuple

from perception.engine.parity import backbone, micro
from perception.engine.parity.comparison import Comparison
from perception.engine.parity.detector import compare_detector
from perception.engine.parity.fixtures import Fixture
from perception.engine.parity.heads import compare_head
from perception.utils import DataError


class Form(NamedTuple):
    """A kind of fixture.

    title: heading in the table.
    key: a key of the JSON, or the end of an array's name, that only this kind has.
    compare: runs it.
    """

    title: str
    key: str
    compare: Callable[[Fixture], Comparison]


FORMS = (
    Form("Head", "head_config", compare_head),
    Form("Detector", "model_config", compare_detector),
    Form("Deformable attention", "grad_sampling_locations", micro.compare_msda),
    Form("Rotation of the history", "/center_xy", micro.compare_rotation),
    Form("Projection", "reference_points_cam", micro.compare_projection),
    Form("Losses in edge cases", "/grad_all_cls_scores", micro.compare_edge_losses),
    Form("Decoding", "/score_threshold", micro.compare_coder),
    Form("Backbone and neck", "/stage0", backbone.compare_backbone),
    Form("Map slicer", "norm_map_x", micro.compare_slicer),
)


def form_of(fixture: Fixture) -> Form:
    """The kind of a fixture.

    Raises:
        DataError: there is no comparison for it.
    """
    for form in FORMS:
        if form.key in fixture.info or any(key.endswith(form.key) for key in fixture.arrays):
            return form
    raise DataError(
        f"the fixture {fixture.name!r} is of no known kind; its arrays begin with {list(fixture.arrays)[:3]}, and "
        f"the kinds are told by {[form.key for form in FORMS]}."
    )


def compare_fixture(fixture: Fixture) -> Comparison:
    """Run whatever a fixture is about, with the switches of `UpstreamCompat` that it needs.

    Raises:
        DataError: there is no comparison for it.
    """
    return form_of(fixture).compare(fixture)
