import os
import sys

import torch

import perception  # noqa: F401 - before mmcv.ops: serves mmcv._ext where it is not compiled

# Without a GPU the kernels run in Triton's interpreter, which has to be chosen before Triton is first imported.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")
