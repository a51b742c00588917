"""Task losses and gradients → one update. Imports torch (and later torchjd) only."""

from perception.balancing.balancer import Balancer
from perception.balancing.task_losses import TaskLosses

__all__ = ["Balancer", "TaskLosses"]
