"""``get_compiler_version`` and ``get_compiling_cuda_version`` of ``mmcv._ext``, for environment reports."""


def get_compiler_version() -> str:
    """Says that there was no compiler."""
    return "none (plain torch ops of perception.ops.mmcv_ext)"


def get_compiling_cuda_version() -> str:
    """Says that there was no CUDA compiler, in the words that mmcv uses for it."""
    return "not available"
