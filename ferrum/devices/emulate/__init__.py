"""Runs rendered CUDA and Metal sources on the CPU: threads are fibers, collectives are meeting points.

``build(source, "cuda" | "metal")`` compiles a source into a ``Module``; ``Module.launch`` runs one kernel on numpy arrays
under a ``Schedule`` and raises ``KernelFault`` for what a device would not survive::

    module = build(source, "cuda")
    module.launch("rms_norm", grid=(rows,), block=(256,), args=[out, x, weight, np.int32(n)], schedule=Schedule("reverse"))

``SCHEDULES`` is the list that a kernel's tests go through. Array arguments are copied to memory that ends at a page which
cannot be touched, and back when the launch is over.
"""

from __future__ import annotations

from ferrum.devices.emulate.memory import GuardedBuffer as GuardedBuffer
from ferrum.devices.emulate.module import SCHEDULES as SCHEDULES
from ferrum.devices.emulate.module import Address as Address
from ferrum.devices.emulate.module import KernelFault as KernelFault
from ferrum.devices.emulate.module import Module as Module
from ferrum.devices.emulate.module import Prepared as Prepared
from ferrum.devices.emulate.module import Schedule as Schedule
from ferrum.devices.emulate.module import Stats as Stats
from ferrum.devices.emulate.module import build as build
