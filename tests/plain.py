"""The same work as plain PyTorch does it, written as one would first write it: the baseline of the
agreement tests and of `make bench`.

Layers from torch.nn, a full unroll with `create_graph`, double backward. Nothing here but DSA's
draws comes from the library.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from ddlib.method import augment


class ConvNet(nn.Sequential):
    """`depth` times convolution, instance norm (one group a channel), ReLU, mean over 2 x 2; one
    linear map."""

    def __init__(self, shape, classes, width, depth):
        c, h, w = shape
        blocks = []
        for i in range(depth):
            wider = 2 * (i == 0 and shape == (1, 28, 28))  # as DC's code does with grey images
            h, w = h + 2 * wider, w + 2 * wider
            blocks += [
                nn.Conv2d(c, width, 3, padding=1 + wider),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            c, h, w = width, h // 2, w // 2
        super().__init__(*blocks, nn.Flatten(), nn.Linear(c * h * w, classes))

    def load(self, theta):
        """This network with the parameters of the vector theta."""
        self.to(theta.dtype)
        vector_to_parameters(theta.clone(), self.parameters())
        return self


def gradient(module, x, y, weight=1.0):
    """weight times the mean cross-entropy, and its gradient as one vector."""
    value = weight * F.cross_entropy(module(x), y)
    return value.detach(), flat(torch.autograd.grad(value, list(module.parameters())))


def penalty(module, x, cost):
    """cost(g) of the input gradient g = d sum_k f_k / dx, and its gradient as one vector, by double
    backward."""
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    value = cost(g)
    given = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
    return value.detach(), flat(
        [
            torch.zeros_like(p) if d is None else d
            for d, p in zip(given, module.parameters(), strict=True)
        ]
    )


def pull(module, x, y, rho, weight=1.0):
    """Derivatives of <rho, gradient> for the parameters and for x, by double backward."""
    x, parameters = x.detach().requires_grad_(), list(module.parameters())
    first = flat(
        torch.autograd.grad(weight * F.cross_entropy(module(x), y), parameters, create_graph=True)
    )
    *d_theta, d_x = torch.autograd.grad(first @ rho, [*parameters, x])
    return flat(d_theta), d_x


def flat(tensors):
    """One vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def train(
    module, x, y, batches, lr, strategies, generator, cost=None, momentum=0.9, weight_decay=0.0
):
    """SGD over these batches of (x, y) with DSA, and with `cost` of the input gradient if there is
    one."""
    optimiser = torch.optim.SGD(
        module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    for batch in batches:
        seen = augment.apply(x[batch], augment.draw(len(batch), strategies, generator))
        value = F.cross_entropy(module(seen), y[batch])
        if cost is not None:
            real = x[batch].requires_grad_()
            (g,) = torch.autograd.grad(module(real).sum(), real, create_graph=True)
            value = value + cost(g)
        optimiser.zero_grad()
        value.backward(inputs=list(module.parameters()))
        optimiser.step()


def outer(module, theta, images, labels, lr, steps, momentum, draws, target):
    """|theta_N - target|^2 of a student that starts at theta, its gradients for the images and for
    lr; all N graphs are kept."""
    shapes = {name: p.shape for name, p in module.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
    theta, b = theta.detach().requires_grad_(), torch.zeros_like(theta)
    for k in range(steps):
        parameters = {
            name: part.view(shape)
            for part, (name, shape) in zip(theta.split(sizes), shapes.items(), strict=True)
        }
        loss = F.cross_entropy(
            functional_call(module, parameters, (augment.apply(images, draws[k]),)), labels
        )
        (d_theta,) = torch.autograd.grad(loss, theta, create_graph=True)
        b = momentum * b + d_theta
        theta = theta - lr * b
    value = (theta - target).square().sum()
    return value.detach(), *torch.autograd.grad(value, (images, lr))
