"""Counts where the host reads a tensor's value, which on a GPU waits until the device has computed it."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostReads(TorchDispatchMode):
    """Collects every read of a value by the host (`item`, `float`, `bool`, a copy to the CPU) while it is active.

    It needs no GPU: tensors on the CPU go through the same operators. A copy from the CPU to the CPU is counted too,
    as on a GPU it would be one from the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        to_cpu = str((kwargs or {}).get("device")) == "cpu" and func.overloadpacket is torch.ops.aten._to_copy
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero) or to_cpu:
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))
