"""What a new head starts from: the same for every backbone, whatever its library does.

The libraries differ widely: timm's EfficientNets draw weights ten to twenty times larger than its
ResNets, and training hardly recovers from that. Here all classes start equal, but for a trace.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

SPREAD = 1e-4  # standard deviation of the logits where the features' is 1
BIAS = 10 * SPREAD  # above zero, and the same for every label


@torch.no_grad()
def start_apart(network: nn.Module, classifier: Collection[str], labels: int) -> None:
    """Draw a classifier's parameters so that its outputs differ from image to image as the features
    do: for pretexts that compare outputs, of which `start_small` would make one point.

    Draws from torch's generator.
    """
    named = dict(network.named_parameters())
    for name in classifier:
        parameter = named[name]
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.numel() / labels))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


@torch.no_grad()
def start_small(network: nn.Module, classifier: Collection[str], labels: int) -> None:
    """Draw a new classifier's parameters so small that the first loss is that of a guess: ln C.

    `classifier` names what depends on the number of labels; the other layers of a wider head keep
    their library's start, since nothing would train below a layer that is zero. It is not zero
    itself either: layers below would get no gradient in the first step, a cosine head would have
    no direction, and a ReLU after the last layer (SqueezeNet) would never open. For that the
    biases are above zero; the softmax does not see it. Draws from torch's generator.
    """
    named = dict(network.named_parameters())
    for name in classifier:
        parameter = named[name]
        if parameter.ndim > 1:
            inputs = parameter.numel() / labels
            nn.init.normal_(parameter, std=SPREAD / math.sqrt(inputs))
        else:
            nn.init.constant_(parameter, BIAS if name.endswith("bias") else SPREAD)
