"""Presets: which backbone, image size and time, where a user has not said; and what is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest

SOURCE = "timm's results-imagenet.csv, top-1 on ImageNet at the size given"


@dataclass(frozen=True)
class Known:
    """A backbone to choose from: parameters, what is published of it, and its licence."""

    name: str  # as timm has it
    parameters: float  # millions, with the head of ImageNet
    accuracy: float  # per cent, of the source above
    at: int  # image size of that accuracy, in pixels
    licence: str

    @property
    def id(self) -> str:
        """The backbone as a recipe names it."""
        return f"timm/{self.name}"


KNOWN = (
    Known("mobilenetv3_small_100.lamb_in1k", 2.54, 67.656, 224, "apache-2.0"),
    Known("tf_efficientnet_lite0.in1k", 4.65, 74.830, 224, "apache-2.0"),
    Known("mobilenetv3_large_100.ra_in1k", 5.48, 75.766, 224, "apache-2.0"),
    Known("efficientnet_b0.ra_in1k", 5.29, 77.694, 224, "apache-2.0"),
    Known("resnet18.a1_in1k", 11.69, 73.158, 288, "apache-2.0"),
    Known("efficientnetv2_rw_t.ra2_in1k", 13.65, 82.350, 288, "apache-2.0"),
    Known("vit_small_patch16_224.augreg_in21k_ft_in1k", 22.05, 81.384, 224, "apache-2.0"),
    Known("resnet50.a1_in1k", 25.56, 81.214, 288, "apache-2.0"),
    Known("resnet101.a1_in1k", 44.55, 82.322, 288, "apache-2.0"),
)


@dataclass(frozen=True)
class Preset:
    """A backbone, the size of images (None: the backbone's own), and a budget in minutes."""

    backbone: str
    image_size: int | None
    minutes: float


PRESETS = {
    "fast": Preset("timm/tf_efficientnet_lite0.in1k", 160, 5),
    "good": Preset("timm/resnet50.a1_in1k", None, 20),
    "best": Preset("timm/efficientnetv2_rw_t.ra2_in1k", None, 90),
}


def check_amount(name: str, amount: float | None, most: float = 1e6) -> None:
    """Raise UserError unless an amount is above 0, if it is given."""
    if amount is not None and not 0 < amount < most:
        raise UserError(f"{name} must be above 0, not {amount:g}")


def preset(
    name: str,
    backbone: str | Path | None = None,
    image_size: int | None = None,
    minutes: float | None = None,
) -> Preset:
    """Return a preset with what is given in place of its own.

    Without a network the preset's backbone must be here; if another known one is, the message
    names it. Raises UserError.
    """
    if name not in PRESETS:
        raise UserError(
            f"there is no preset {name!r}{nearest(name, PRESETS)}; presets are {', '.join(PRESETS)}"
        )
    own = PRESETS[name]
    if backbone is None:
        _check_here(own.backbone, name)
    return Preset(
        str(backbone) if backbone is not None else own.backbone,
        image_size or (own.image_size if backbone is None else None),
        minutes or own.minutes,
    )


def is_here(backbone_id: str) -> bool:
    """Return whether a backbone's weights are on this machine: a folder, or in the Hub's cache."""
    if Path(backbone_id).expanduser().exists():
        return True
    from huggingface_hub import try_to_load_from_cache

    library, _, name = backbone_id.partition("/")
    repo = f"timm/{name}" if library == "timm" else name if library == "transformers" else ""
    files = ("model.safetensors", "pytorch_model.bin") if repo.count("/") == 1 else ()
    return any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)


def _check_here(backbone_id: str, name: str) -> None:
    """Raise UserError where the Hub may not be asked and the weights are not here."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE or is_here(backbone_id):
        return
    others = [known.id for known in KNOWN if is_here(known.id)]
    instead = f"--backbone {others[-1]}, which is here" if others else "--backbone FOLDER"
    raise UserError(
        f"preset {name} takes {backbone_id}, which is not on this machine, and HF_HUB_OFFLINE is "
        f"set; give {instead}, or run `hf download {backbone_id}` where there is a network"
    )
