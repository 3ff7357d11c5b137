"""The method: tensors in, tensors out. Read it in this order: networks, functional, train, experts, smoothness, select, student, distill, evaluate."""
