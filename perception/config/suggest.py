"""The nearest-name helpers under the name that configs' code uses; they live in `perception.utils`."""

from perception.utils.suggest import closest, did_you_mean, edit_distance

__all__ = ["closest", "did_you_mean", "edit_distance"]
