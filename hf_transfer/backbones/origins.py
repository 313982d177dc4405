"""Where a backbone comes from: an id to a library and a name, folder, file or repository.

Light: an id with a mistake is refused without importing torch or a library of networks.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_transfer.backbones.auto_classes import MODEL_TYPE
from hf_transfer.backbones.config_checks import check_config
from hf_transfer.base.boundary import printable, untrusted
from hf_transfer.base.download import BackboneError, answering_hub, one_line
from hf_transfer.base.errors import unfinished
from hf_transfer.base.files import expanded, read_limited

SOURCES = ("timm", "transformers", "torchvision")
LOADED_FROM = (
    "give a run folder, a model folder (with config.json), OWNER/NAME on the Hub, or, to predict "
    "and to evaluate, an .onnx file of hf-transfer export"
)
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
REGISTERED = re.compile(
    r"^@register_model(?:\(.*?\))?\s*\n(?:@.*\n(?:^[ )\"].*\n)*)*def (\w+)\(", re.M
)
# How torchvision's files name weights, and transformers' the types of its networks.
ENUM = re.compile(r"^class (\w+)_Weights\(WeightsEnum\):\n((?:    .*\n|\s*\n)*)", re.M)
MEMBER = re.compile(r"^    (\w+) = ", re.M)
CLASSIFIERS = re.compile(r"^MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES = .*?^\)", re.M | re.S)
TYPE = re.compile(r"^ +\(\"([\w-]+)\", ", re.M)


@dataclass(frozen=True)
class Origin:
    """What a backbone id means: a library, and a name, folder or Hub repository that it knows."""

    source: str
    name: str  # architecture (with tag), model type, or what transformers opens
    folder: Path | None = None
    repo: str | None = None
    config: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    weights: Path | None = None  # the file that the id names, in `folder`

    def __str__(self) -> str:
        return str(self.weights or self.folder or f"{self.source}/{self.repo or self.name}")


def locate(backbone_id: str) -> Origin:
    """Return where `timm/NAME`, `transformers/REPO`, `torchvision/NAME`, a folder, a file of
    weights or OWNER/NAME on the Hub leads; by config.json where there is one. Raises
    BackboneError."""
    path = expanded(backbone_id)
    source, _, name = backbone_id.partition("/")
    if backbone_id and path.is_dir():
        return _in_folder(path)
    if path.suffix in WEIGHTS and path.is_file():
        return _beside(path)
    if backbone_id.startswith((".", "/", "~")):
        what = "file" if path.suffix in WEIGHTS else "folder"
        if path.exists():
            raise BackboneError(f"backbone {backbone_id} is a file; give the folder of a model")
        raise BackboneError(f"backbone {what} {backbone_id} does not exist")
    if source in SOURCES and name:
        folder = expanded(name)
        if source == "transformers" and (folder / "config.json").is_file():
            return _in_folder(folder)
        if name.startswith((".", "/", "~")):
            return locate(name)
        return _on_hub(name) if "/" in name else Origin(source, name)
    if name and source and "/" not in name:
        return _on_hub(backbone_id)
    raise BackboneError(f"unknown backbone '{printable(backbone_id)}'; {_meant(backbone_id)}")


def check_weights_file(path: Path) -> None:
    """Raise BackboneError unless there is such a file."""
    if not path.is_file():
        why = "is not a file" if path.exists() else "does not exist"
        raise BackboneError(f"weights file {path} {why}")


def check_id(backbone_id: str) -> None:
    """Raise BackboneError, at once and without a connection, for an id that leads nowhere: a name
    without a library or unknown to its library, a path that does not exist."""
    source, _, name = backbone_id.partition("/")
    on_hub = source and name and "/" not in name and not backbone_id.startswith((".", "/", "~"))
    if not on_hub and not (source in SOURCES and name):
        locate(backbone_id)
    architecture = name.partition(".")[0]
    if source in ("timm", "torchvision") and name and "/" not in name:
        texts = list(_sources(source))
        names = [each for text in texts for each in REGISTERED.findall(text)]
        older = re.compile(rf"[\"']{re.escape(architecture)}[\"']")  # timm's deprecated names
        if names and architecture not in names and not any(map(older.search, texts)):
            raise no_architecture(source, architecture, names)
        _check_tag(source, name, texts)
    if source == "transformers" and name and "/" not in name and not expanded(name).exists():
        texts = list(_sources(source, "models/auto/*.py"))
        block = next((found for text in texts for found in CLASSIFIERS.findall(text)), "")
        if TYPE.search(block) and name not in {n for text in texts for n in TYPE.findall(text)}:
            raise no_type(name, TYPE.findall(block))


def _check_tag(source: str, name: str, texts: Sequence[str]) -> None:
    """Raise BackboneError for weights that a library's source files do not name among those of
    this architecture; where they name none, nothing is known."""
    architecture, _, tag = name.partition(".")
    if source == "timm":
        pattern = re.compile(rf"[\"']{re.escape(architecture)}\.(\w+)[\"']")
        known = [each for text in texts for each in pattern.findall(text)]
    else:
        bodies = (found for text in texts for found in ENUM.findall(text))
        own = (body for kind, body in bodies if _bare(kind) == _bare(architecture))
        known = [*MEMBER.findall(next(own, "")), "DEFAULT"]
    if tag and len(known) > 1 and tag not in known:
        raise no_weights(source, name, [f"{architecture}.{each}" for each in dict.fromkeys(known)])


def _bare(name: str) -> str:
    return name.replace("_", "").lower()


def no_weights(source: str, name: str, known: Sequence[str]) -> BackboneError:
    """Return the error for weights that a library does not have of an architecture that it has."""
    there = ", ".join(known) or "none"
    return BackboneError(f"{source} has no weights '{printable(name)}'; it has {there}")


def check_model(where: str | Path) -> Path | None:
    """Return the folder of a finished model, None for a repository of the Hub.

    Raises BackboneError, at once and without a connection, for what is neither.
    """
    folder = expanded(where)
    if folder.is_dir():
        named = any((each / "config.json").is_file() for each in (folder, folder / "model"))
        if not named and not (folder / "recipe.yaml").is_file():  # that of a run without a model
            raise BackboneError(f"{where} holds no model; {LOADED_FROM}")
    elif folder.exists() and not (
        folder.suffix in WEIGHTS and folder.with_name("config.json").is_file()
    ):
        raise BackboneError(f"{where} is a file that no model is loaded from; {LOADED_FROM}")
    if folder.exists():
        locate(str(folder))
        return folder
    if len(Path(where).parts) != 2 or str(where).startswith((".", "/", "~")):
        raise BackboneError(
            f"model {printable(repr(str(where)))} is neither a folder nor a Hub repository "
            "(owner/name)"
        )
    return None


def no_type(name: str, types: Iterable[str]) -> BackboneError:
    """Return the error for a model type that transformers does not have."""
    return BackboneError(
        f"transformers has no model type '{printable(name)}'{nearest(name, types)}; give a type, a "
        "repository OWNER/NAME or a folder"
    )


def no_architecture(source: str, name: str, names: Iterable[str]) -> BackboneError:
    """Return the error for a name that a library does not have."""
    return BackboneError(f"{source} has no architecture '{printable(name)}'{nearest(name, names)}")


def _meant(name: str) -> str:
    """Return what a name without a library may have meant, or how ids are written."""
    known = known_names()
    word, _, tag = name.strip("/").partition(".")
    word = word.lower()
    meant = [f"{source}/{word}" for source, names in known.items() if word in names]
    if not meant:
        libraries = {each: source for source, names in known.items() for each in names}
        near = difflib.get_close_matches(word, libraries, n=2, cutoff=0.75)
        meant = [f"{libraries[each]}/{each}" for each in near]
    elif tag:  # timm writes tags in small letters, torchvision in capitals
        library = "timm" if tag.islower() else "torchvision"
        meant = [f"{each}.{tag}" for each in meant if each.startswith(library)] or meant
    if meant:
        return f"did you mean {' or '.join(meant)}?"
    return "write timm/NAME, torchvision/NAME, transformers/REPO, or the path of a folder"


def known_names() -> dict[str, tuple[str, ...]]:
    """Return the architectures of timm and torchvision, by library, read from their source files:
    importing the libraries takes many seconds."""
    return {
        library: tuple(name for text in _sources(library) for name in REGISTERED.findall(text))
        for library in ("timm", "torchvision")
    }


def _sources(library: str, pattern: str = "models/*.py") -> Iterator[str]:
    """Yield the text of each file that a library keeps its models, or their names, in."""
    found = importlib.util.find_spec(library)
    if found is not None and found.origin is not None:
        for path in sorted(Path(found.origin).parent.glob(pattern)):
            yield path.read_text(encoding="utf-8", errors="replace")


def _in_folder(folder: Path) -> Origin:
    inner = folder / "model"
    if not (folder / "config.json").is_file():
        if (inner / "config.json").is_file():
            folder = inner  # a run's folder
        elif (folder / "recipe.yaml").is_file():
            raise BackboneError(unfinished(folder))
    path = folder / "config.json"
    if not path.is_file():
        raise BackboneError(
            f"backbone folder {folder} has no config.json; give a folder that timm, transformers "
            "or hf-transfer saved"
        )
    if (processor := folder / "preprocessor_config.json").is_file():
        _read(processor, str(processor))
    return _by_config(_read(path, str(path)), str(path), folder=folder)


def _beside(weights: Path) -> Origin:
    """Return the origin of a file of weights: the config.json next to it names its network."""
    if not weights.with_name("config.json").is_file():
        raise BackboneError(
            f"{weights} has no config.json next to it that names its network; name it, for "
            f"example: --backbone timm/NAME --set weights={weights}"
        )
    return replace(_in_folder(weights.parent), weights=weights)


def _on_hub(repo: str) -> Origin:
    from huggingface_hub import hf_hub_download

    owner, _, name = repo.partition("/")
    meant = [f"{source}/{name}" for source in difflib.get_close_matches(owner, SOURCES, n=1)]
    remedy = f"give {' or '.join(meant or ['timm/NAME, torchvision/NAME'])} or a local folder"
    with one_line(f"the Hub repository {repo}", remedy), answering_hub():
        path = hf_hub_download(repo, "config.json")
    return _by_config(_read(Path(path), f"config.json of {repo}"), repo, repo=repo)


def _read(path: Path, place: str) -> dict[str, Any]:
    """Return a config that others wrote, checked."""
    with untrusted(place, "save the model again", BackboneError):
        config = json.loads(read_limited(path))
        if not isinstance(config, dict):
            raise BackboneError(f"{place} has no named settings; save the model again")
        check_config(config, place)
    return config


def _by_config(
    config: dict[str, Any], place: str, folder: Path | None = None, repo: str | None = None
) -> Origin:
    kind = config.get("model_type")
    if isinstance(config.get("architecture"), str) and kind in (None, "timm_wrapper"):
        return Origin("timm", config["architecture"], folder, repo, config)
    if kind == MODEL_TYPE and isinstance(config.get("architecture"), str):
        return Origin("torchvision", config["architecture"], folder, repo, config)
    if isinstance(kind, str) and kind not in (MODEL_TYPE, "timm_wrapper"):
        return Origin("transformers", repo or str(folder), folder, repo, config)
    raise BackboneError(f"{place} has neither an architecture (timm) nor a model_type")


def local_folder(origin: Origin) -> Path | None:
    """Return the folder with an origin's files, downloaded first where it is a repository of the
    Hub; None for a name that its library knows."""
    if origin.repo is None:
        return origin.folder
    from huggingface_hub import snapshot_download

    with one_line(f"the weights of {origin}"), answering_hub():
        return Path(snapshot_download(origin.repo, allow_patterns=["*.json", "*.safetensors"]))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; nearest: …" with the up to three names most like this one, or ""."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""
