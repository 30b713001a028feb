"""What a process is set to before it trains on a CPU."""

import ctypes

import torch

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


def set_up() -> None:
    """Denormal numbers count as zero, and memory that a step frees is kept for the next."""
    # They are slow on CPUs and say nothing here.
    torch.set_flush_denormal(True)
    # glibc gives each large tensor back to the kernel, whose zeroed pages a step then asks for again, by hundreds of
    # page faults. Other C libraries have no such call.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, _NEVER)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
