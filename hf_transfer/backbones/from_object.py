"""A user's own model: its head, its layout and its groups, found out or given by hand."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict

from torch import nn
from transformers import PreTrainedModel

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.backbones.meta_device import on_meta
from hf_transfer.backbones.trace import exempt_from_decay, head_names, is_norm, trace_layout
from hf_transfer.base.download import BackboneError, one_line
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.planning.groups import Group, LayerGroups, group_layers
from hf_transfer.planning.layout import GroupsError, Layout
from hf_transfer.recipe.tasks import task_of


def describe(
    model: nn.Module,
    head: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    image: ImageSettings | None = None,
) -> Backbone:
    """Return what is known of a model: from its loader, or found out from the model itself.

    `head` names the newly initialised parameters or their modules (* and ? match anything); of a
    transformers classifier it is found. `groups` gives layers by hand, from input to output: name
    to parameters, modules or patterns. `image` is what the model sees. Raises BackboneError.
    """
    _check_plain(model)
    known = getattr(model, "backbone", None)
    known = known if isinstance(known, Backbone) else None
    if known and head is None and groups is None:
        return known
    wrapped = "timm_model." if type(model).__name__.startswith("TimmWrapper") else ""
    prefix = known.prefix if known else wrapped
    network = model.get_submodule(prefix.rstrip(".")) if prefix else model
    if head is None and groups:
        head = groups.get("head")
    if head is not None:
        new = _named(network, [pattern.removeprefix(prefix) for pattern in head])
    elif known:
        new = known.layout.head
    else:
        new = tuple(name.removeprefix(prefix) for name in _head_of(model))
    config = getattr(model, "config", None)
    labels = tuple((getattr(config, "id2label", None) or {}).values())
    image = image or (known.image if known else _image_of(model))
    return Backbone(
        id=getattr(config, "_name_or_path", "") or type(model).__name__,
        source=known.source if known else "timm" if prefix else "object",
        prefix=prefix,
        labels=labels,
        groups=_groups(network, image, new, len(labels), groups),
        image=image,
        weights="as given",
        task=task_of(getattr(config, "problem_type", None), getattr(config, "pretext", None)),
    )


def _named(network: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the parameters that a user's patterns for the head match. Raises BackboneError."""
    names = [name for name, _ in network.named_parameters()]
    found = _matched(names, patterns)
    if not found:
        raise BackboneError(f"head {list(patterns)} matches no parameter; the last is {names[-1]}")
    return found


def _groups(
    network: nn.Module,
    image: ImageSettings,
    head: Sequence[str],
    labels: int,
    given: Mapping[str, Sequence[str]] | None,
) -> LayerGroups:
    """Return the network's groups, found out or as given. Raises BackboneError."""
    try:
        layout = trace_layout(network, image=asdict(image), head=head, labels=labels)
        if given is None:
            return group_layers(layout)
    except GroupsError as error:
        if given is None:
            raise BackboneError(
                f"cannot group the layers of {type(network).__name__} ({error}); give them by "
                "hand, from input to output: groups={'stem': ['conv1.*'], …, 'head': ['fc.*']}"
            ) from error
        layout = _untraced(network, image, head, labels)
    return _by_hand(layout, given)


def _check_plain(model: nn.Module) -> None:
    """Raise BackboneError for a model in a wrapper, without weights, or with adapters: ours come
    and go with a phase."""
    inside = {"DataParallel": "module", "DistributedDataParallel": "module"}
    inside |= {"OptimizedModule": "_orig_mod"}  # by torch.compile
    kind = type(model).__name__
    if kind in inside:
        raise BackboneError(
            f"the model comes in a {kind}; pass model.{inside[kind]}: the Trainer wraps it itself "
            "(accelerate launch for several GPUs, torch_compile=True in the arguments)"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise BackboneError(
            f"this {kind} is on the meta device and has no weights; build it outside of "
            "torch.device('meta')"
        )
    if hasattr(model, "peft_config"):
        raise BackboneError(
            f"this {type(model).__name__} has adapters; merge them (merge_and_unload()), and train "
            "new ones with train: lora(r=8)"
        )


def _matched(names: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a pattern matches, or that lie in a module it matches."""
    wanted = [*patterns, *(f"{pattern}.*" for pattern in patterns)]
    return tuple(n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in wanted))


def _head_of(model: nn.Module) -> tuple[str, ...]:
    """Return the parameters of a transformers classifier that depend on the number of labels."""
    config = getattr(model, "config", None)
    if isinstance(model, PreTrainedModel) and getattr(config, "num_labels", None):
        more = copy.deepcopy(config)
        more.num_labels = config.num_labels + 1
        with one_line(type(model).__name__), on_meta():
            found = head_names(model, type(model)(more))
        if found:
            return found
    last = [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
    raise BackboneError(
        f"cannot tell the head of a {type(model).__name__}; name its parameters, for example "
        f"TransferTrainer(model, …, head=['{last}.*'])"
    )


def _image_of(model: nn.Module) -> ImageSettings:
    """Return what a model's config says about its pixels: timm's in full, of others the size."""
    config = getattr(model, "config", None)
    settings = getattr(config, "pretrained_cfg", None)
    if settings:
        from hf_transfer.backbones.from_timm import image_of

        usual = asdict(ImageSettings(224))
        return image_of({**usual, "input_size": (3, 224, 224), **settings})
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or 224
    return ImageSettings(size=size[-1] if isinstance(size, (list, tuple)) else size)


def _untraced(network: nn.Module, image: ImageSettings, head: Sequence[str], labels: int) -> Layout:
    """Return the layout of a network that does not run on images alone, its order unknown."""
    return Layout(
        parameters=tuple((name, tuple(p.shape)) for name, p in network.named_parameters()),
        head=tuple(head),
        norms=tuple(path for path, module in network.named_modules() if is_norm(module)),
        no_decay=tuple(sorted(exempt_from_decay(network))),
        image=asdict(image),
        labels=labels,
    )


def _by_hand(layout: Layout, groups: Mapping[str, Sequence[str]]) -> LayerGroups:
    """Return the groups that a user gives, each parameter in the first that matches it; the head
    comes last. Raises BackboneError where a group is empty, or a parameter in none."""
    left = [name for name, _ in layout.parameters if name not in layout.head]
    members: dict[str, tuple[str, ...]] = {}
    for name, patterns in groups.items():
        if name == "head":
            continue
        members[name] = _matched(left, patterns)
        if not members[name]:
            raise BackboneError(
                f"group {name!r} {list(patterns)} matches no parameter that is left"
            )
        left = [parameter for parameter in left if parameter not in members[name]]
    if left:
        raise BackboneError(f"{len(left)} parameters are in no group, the first is {left[0]}")
    members["head"] = layout.head
    return LayerGroups(
        tuple(
            Group(name, name, own, sum(layout.sizes[n] for n in own), _modules(layout, own))
            for name, own in members.items()
        ),
        layout,
    )


def _modules(layout: Layout, own: Collection[str]) -> tuple[str, ...]:
    """Return the outermost modules all of whose parameters are among these."""
    names = [name for name, _ in layout.parameters]
    paths = {".".join(n.split(".")[:i]) for n in own for i in range(1, n.count(".") + 1)}
    whole = {
        path
        for path in paths
        if all(name in set(own) for name in names if name.startswith(f"{path}."))
    }
    return tuple(sorted(path for path in whole if path.rpartition(".")[0] not in whole))
