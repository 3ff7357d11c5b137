"""The method: tensors in, tensors out, no disk.

`augment` is used throughout; `condense` holds the rivals that follow no expert (DC, DSA, DM).
`fast` has the derivatives of the ConvNet again, faster; it may be deleted.
"""
