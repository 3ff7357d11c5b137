"""The derivatives of the ConvNet by hand, faster than automatic differentiation on a CPU.

This folder may be deleted: the plain network then gives the same results up to rounding.
"""
