"""Layouts of loaded networks: traced once for networks that are built alike."""

import pytest

from hf_transfer.backbones import layouts
from hf_transfer.backbones.load import load_backbone, load_model, save_model

NAMES = ("a", "b", "c")


def load(size: int = 32, labels: tuple[str, ...] = NAMES, name: str = "test_resnet", **more):
    return load_backbone(f"timm/{name}", labels, pretrained=False, image_size=size, **more)


def test_a_network_that_is_loaded_again_is_not_traced_again(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "TRACED", {})
    first = load(seed=1)
    save_model(first, tmp_path / "model")
    monkeypatch.setattr(layouts, "trace_layout", None)
    assert load(seed=2).backbone.layout == first.backbone.layout
    saved = load_model(tmp_path / "model").backbone.layout
    assert saved.head_kept
    assert saved.parameters == first.backbone.layout.parameters


@pytest.mark.parametrize(
    "other",
    [
        {"size": 48},
        {"labels": NAMES[:2]},
        {"channels": 1},
        {"replace_layers": 2},
        {"name": "test_vit"},
        {"fit": "squash"},
    ],
)
def test_a_layout_is_the_same_whatever_was_loaded_before(other, monkeypatch):
    monkeypatch.setattr(layouts, "TRACED", {})
    fresh = load(**other).backbone.layout
    monkeypatch.setattr(layouts, "TRACED", {})
    load()
    assert load(**other).backbone.layout == fresh
    assert load(**other).backbone.layout == fresh
