"""Derivatives of the ConvNet by hand. The folder may be deleted: plain PyTorch then does them."""
