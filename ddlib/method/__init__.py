"""The method: tensors in, tensors out, no disk.

Reading order: networks, functional, train, experts, smoothness, select, student, distill,
evaluate. `augment` is used throughout; `condense` holds the rivals that follow no expert (DC, DSA,
DM). `fast` has the derivatives of the ConvNet again, faster; it may be deleted.
"""
