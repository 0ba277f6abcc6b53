"""Triton kernels for dialect operators where Inductor's own code leaves time.  One file each.

Each file holds the kernel, how it is launched, and the bytes it must move (its roofline on a device
is these over the device's bandwidth).  ``registry.KERNELS`` says which operator each stands for.
Only a target that compiles for a GPU imports this package: Triton is no dependency of tokopt.
"""
