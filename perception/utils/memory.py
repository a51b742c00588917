"""How the C library treats memory that a process has freed."""

import ctypes

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 1 << 30
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB, however many, for the next allocation.

    By default a block of more than 32 MiB comes from the system each time and goes back to it, and the first touch of
    each of its pages costs a page fault. Torch allocates its CPU tensors so: activations of a batch just above that
    size can take longer to allocate than to compute. The process then stays as large as it ever was.

    Returns:
        Whether it took effect; False where the C library is another.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    return all([set_option(_MMAP_THRESHOLD, _LARGEST_KEPT) == 1, set_option(_TRIM_THRESHOLD, _NEVER) == 1])
