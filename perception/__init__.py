"""Multi-task driving perception: training, evaluation and export.

Importing this package imports neither torch nor any OpenMMLab package. It only makes sure that a later
``import mmcv.ops`` finds ``mmcv._ext`` (see :mod:`perception.ops.mmcv_finder`), and that MMEngine leaves DeepSpeed
alone (see :mod:`perception.utils.mmengine_finder`).
"""

from perception.ops.mmcv_finder import install as _install_mmcv_fallback
from perception.utils.mmengine_finder import install as _hide_deepspeed

__version__ = "0.1.0"

_install_mmcv_fallback()
_hide_deepspeed()
