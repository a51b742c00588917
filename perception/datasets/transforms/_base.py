"""What all transforms share."""

from abc import ABC, abstractmethod
from typing import Any


class Transform(ABC):
    """A step of the pipeline: takes the results so far, returns new ones, leaves its argument as it was.

    The keys are listed at `NuScenesBEVDataset` and at `BDD100KDataset`. Randomness comes from `results["rng"]` only,
    or, where it moves the LiDAR frame, from `results["sequence_rng"]`, with equally many draws for every frame.
    """

    @abstractmethod
    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Apply the step."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name.lstrip('_')}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"
