"""The derivatives of the ConvNet by hand, faster than automatic differentiation on a CPU.

This folder may be deleted: `ddlib.method.functional.network` then gives the plain network, whose
results are the same up to rounding.
"""
