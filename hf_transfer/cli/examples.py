"""Examples for the help of each command."""

from __future__ import annotations

import re

COLUMNS = 80
BREAK = re.compile(r"(?<=\S) (?=--|> )")  # where a long example may be folded

EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "train flowers --minutes 10",
        "train more_flowers --add runs/flowers --out runs/more",
        "train lp_ft --data flowers --backbone timm/resnet50.a1_in1k --push-to alice/flowers",
        "train my_recipe.yaml --set phases.0.lr=1e-4 --out runs/first",
        "train my_recipe.yaml --out runs/first --resume",
    ),
    "plan": (
        "plan lp_ft --data flowers --backbone timm/resnet50.a1_in1k",
        "plan my_recipe.yaml --set data.image_size=96",
    ),
    "recipes": ("recipes", "recipes lp_ft > my_recipe.yaml"),
    "groups": ("groups timm/resnet50 --grain stages", "groups --all --out groups.csv"),
    "advise": ("advise --data flowers --backbone timm/resnet18.a1_in1k --budget 10m",),
    "compare": ("compare full lp_ft --data flowers --backbone timm/resnet18.a1_in1k --seeds 3",),
    "backbones": ("backbones", "backbones --data flowers"),
    "runs": ("runs", "runs experiments"),
    "predict": (
        "predict runs/lp_ft photos/*.jpg",
        "predict alice/flowers photos --unknown --format csv",
        "predict model.onnx photos --format jsonl",
        "predict runs/lp_ft - --format jsonl --batch-size 1",
    ),
    "evaluate": (
        "evaluate runs/lp_ft --data flowers",
        "evaluate runs/lp_ft --data new_photos --compare runs/full --out evaluation",
    ),
    "embed": (
        "embed runs/lp_ft photos --out features.parquet",
        "embed runs/lp_ft photos --near photos/1.jpg --top 5",
    ),
    "explain": ("explain runs/lp_ft photos/1.jpg --label daisy --label rose --out heat-maps",),
    "export": (
        "export runs/lp_ft --out flowers.onnx",
        "export runs/lp_ft --int8 --data flowers --out flowers-int8.onnx",
        "export runs/lp_ft --to openvino --out flowers.xml",
    ),
    "push": (
        "push runs/lp_ft alice/flowers --private",
        "push runs/lp_ft alice/flowers --pr --license mit --language en",
    ),
    "demo": ("demo runs/lp_ft", "demo runs/lp_ft alice/flowers --port 7861"),
    "cache": ("cache", "cache --clear"),
    "completion": (
        "completion bash > ~/.local/share/bash-completion/completions/hf-transfer",
        "completion zsh > ~/.zfunc/_hf-transfer",
        "completion fish > ~/.config/fish/completions/hf-transfer.fish",
    ),
}


def epilog(command: str, program: str) -> str | None:
    """Return the examples of a command as the end of its help, None where there are none."""
    lines = EXAMPLES.get(command, ())
    folded = ["\n".join(_folded(f"  {program} {line}")) for line in lines]
    return "\n".join(["examples:", *folded]) if lines else None


def _folded(line: str) -> list[str]:
    """Return a command in lines that a terminal of 80 columns shows whole and a shell reads as
    one; they end before an option or a redirection."""
    lines = [line]
    while len(lines[-1]) > COLUMNS:
        ends = [at.start() for at in BREAK.finditer(lines[-1]) if at.start() <= COLUMNS - 2]
        if not ends:
            break
        first, rest = lines[-1][: ends[-1]], lines[-1][ends[-1] :]
        lines[-1:] = [f"{first} \\", f"      {rest.lstrip()}"]
    return lines
