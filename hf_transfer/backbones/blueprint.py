"""The two records of this room: `Blueprint` before a network is built, `Backbone` after.

A blueprint is drawn from names and configs alone, so planning needs no weights. A backbone is what
training, saving and serving know of the network that a model contains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_transfer.backbones.origins import Origin
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.scale import Scale
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.layout import Layout


@dataclass(frozen=True)
class Blueprint:
    """How to build a network: everything but its number of labels and its weights."""

    origin: Origin
    image: ImageSettings  # what the network will see
    own: ImageSettings  # what its checkpoint has seen
    classes: int = 0  # of the checkpoint's own head; 0 = it has none, or nobody says
    labels: tuple[str, ...] = ()  # of the checkpoint's own head, where they are known
    arguments: dict[str, Any] = field(default_factory=dict)  # of the library's builder
    settings: Any = None  # the library's own: pretrained_cfg, config, or weights
    reversed: bool = False  # its checkpoint takes BGR; its first layer is turned to RGB
    task: str = "classification"  # of the checkpoint's own head

    @property
    def is_changed(self) -> bool:
        """Whether the network differs from its checkpoint's below the head."""
        same = self.image.size == self.own.size and self.image.channels == self.own.channels
        return not same


@dataclass(frozen=True)
class Backbone:
    """What is known of a model that was loaded; its `backbone` attribute."""

    id: str
    source: str
    prefix: str  # of the bare network's names inside the model that trains
    labels: tuple[str, ...]
    groups: LayerGroups
    image: ImageSettings
    weights: str  # "pretrained", "random", or the file they were read from
    task: str = "classification"
    scale: Scale | None = None  # of the numbers that it gives; None: they have none yet
    thresholds: tuple[float, ...] = ()  # from which labels of several are there; (): one half
    tta: bool = False  # whether its answers are means over an image and its mirror image

    @property
    def layout(self) -> Layout:
        """The structure of the network that the groups are of."""
        return self.groups.layout
