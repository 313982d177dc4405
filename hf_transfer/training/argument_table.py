"""What becomes of each of TrainingArguments' fields, and of each argument of Trainer: a table.

'honoured': as in a Trainer. "a phase's to say": it stands for what a phase, given as a mapping,
leaves out. 'refused, because …': another value than its usual one would fail or do nothing.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainingArguments

from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.recipe import stopping
from hf_transfer.training.trackers import check_trackers

STREAMS = (IterableDataset, datasets.IterableDataset)
logger = logging.getLogger(__name__)

HONOURED = (
    *("output_dir", "lr_scheduler_kwargs", "optim_args", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "average_tokens_across_devices", "bf16", "fp16", "tf32"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
    *("gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend"),
    *("torch_compile_mode", "torch_empty_cache_steps", "logging_strategy", "logging_steps"),
    *("logging_first_step", "log_on_each_node", "log_level", "log_level_replica", "disable_tqdm"),
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id"),
    *("trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
    *("per_device_eval_batch_size", "prediction_loss_only", "eval_use_gather_object"),
    *(
        "batch_eval_metrics",
        "eval_accumulation_steps",
        "include_for_metrics",
        "save_strategy",
        "save_steps",
    ),
    *("save_on_each_node", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ignore_data_skip"),
    *("restore_callback_states_from_checkpoint", "full_determinism", "seed", "data_seed"),
    *("use_cpu", "accelerator_config", "dataloader_drop_last", "dataloader_num_workers"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_multiprocessing_context", "dataloader_in_order", "label_names"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "debug"),
    *("skip_memory_metrics", "do_train", "do_eval", "do_predict", "resume_from_checkpoint"),
    *("local_rank", "train_sampling_strategy"),
)
A_PHASES = {  # and the key of a phase that says it
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "optim": "optimizer",
    "weight_decay": "weight_decay",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "max_grad_norm",
    "label_smoothing_factor": "label_smoothing",
}
REFUSED = {
    "auto_find_batch_size": "batch_size is a phase's; where memory is short, the error says which",
    "bf16_full_eval": "it would leave the weights in half precision; use bf16",
    "fp16_full_eval": "it would leave the weights in half precision; use fp16",
    "deepspeed": "it is not supported; to shard parameters use FSDP2",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway",
    "eval_do_concat_batches": "metrics are of all images together",
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
            *("hub_always_push", "hub_revision"),
        ),
        "a run is published when it is finished, with its card: hf-transfer push FOLDER OWNER/NAME",
    ),
    "include_num_input_tokens_seen": "images have no tokens",
    "length_column_name": "images have no length",
    "liger_kernel_config": "its kernels are for text",
    "neftune_noise_alpha": "its noise is for text",
    "optim_target_modules": "what trains is a phase's to say, in train",
    "parallelism_config": "a network is trained whole; to shard parameters use FSDP2",
    "save_only_model": "the run could not be resumed",
    "use_cache": "it is for text",
    "use_liger_kernel": "its kernels are for text",
}
# Their usual values cannot be told from what a user says, so another value is set in their place.
ALWAYS = {
    "remove_unused_columns": (False, "it would drop the images"),
    "logging_nan_inf_filter": (False, "it would hide a loss that is not a number"),
}
VALUES = {  # of what is honoured otherwise
    "save_strategy": (
        "best",
        "checkpoints are for resuming, and the best weights are kept anyway",
    ),
    "train_sampling_strategy": ("group_by_length", "images have no length"),
}
OF_TRAINER = {
    **dict.fromkeys(
        (
            *("model", "args", "data_collator", "train_dataset", "eval_dataset"),
            *("processing_class", "compute_loss_func", "compute_metrics", "callbacks"),
            *("optimizer_cls_and_kwargs", "preprocess_logits_for_metrics", "model_init"),
        ),
        "honoured",
    ),
    "optimizers": "refused, because each phase builds its own from its groups and rates; write "
    "optimizer and schedule in the phases, or pass optimizer_cls_and_kwargs",
}


def becomes_of(name: str) -> str:
    """Return what becomes of a field of TrainingArguments, in words."""
    if name in A_PHASES:
        return f"a phase's to say: {A_PHASES[name]}"
    if name in REFUSED:
        return f"refused, because {REFUSED[name]}"
    if name in ALWAYS:
        value, because = ALWAYS[name]
        return f"refused, because {because}; it is always {value}"
    if name in VALUES:
        value, because = VALUES[name]
        return f"honoured, but {value!r} is refused, because {because}"
    return "honoured" if name in HONOURED else "unknown"


def check_arguments(args: TrainingArguments, own: Mapping[str, Any]) -> None:
    """Raise UserError for what is refused of the arguments, and of `own`, which are Trainer's."""
    for name, value in own.items():
        text = OF_TRAINER.get(name, "")
        if name == "optimizers" and value == (None, None):
            continue
        if text.startswith("refused") and value is not None:
            raise UserError(f"{name} is {text}")
    usual = _usual()
    for name, because in REFUSED.items():
        value = getattr(args, name, None)
        if value and value != usual.get(name):
            shown = "…" if "token" in name else repr(value)
            raise UserError(f"{name}={shown} is refused, because {because}")
        if usual.get(name) is True and value is False:
            raise UserError(f"{name}=False is refused, because {because}")
    for name, (refused, because) in VALUES.items():
        value = getattr(args, name, None)
        if str(getattr(value, "value", value)) == refused:
            raise UserError(f"{name}={refused!r} is refused, because {because}")
    check_trackers(args.report_to)
    _check_best(args)
    _check_own(own, args.include_for_metrics)
    _check_objects(own)


def _check_own(own: Mapping[str, Any], metrics: Sequence[str] = ()) -> None:
    if "inputs" in metrics and isinstance(own.get("eval_dataset"), ImageSet):
        raise UserError(
            "include_for_metrics=['inputs'] needs a validation set of pixel_values, and an "
            "ImageSet gives stored pixels; remove it, or pass a data set of your own"
        )
    kind = own.get("optimizer_cls_and_kwargs")
    pair = isinstance(kind, tuple | list) and len(kind) == 2 and isinstance(kind[1], Mapping)
    if kind is not None and not (pair and callable(kind[0])):
        raise UserError(
            f"optimizer_cls_and_kwargs is {_kind(kind)}; pass a class of optimizers and its "
            "options: (torch.optim.Adagrad, {})"
        )
    if kind is not None:
        _check_optimizer(*kind)


def _check_optimizer(kind: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise UserError for options that a phase sets, or that the optimizer does not take."""
    ours = ("params", "lr", "weight_decay")
    set_there = sorted(set(ours) & set(options))
    if set_there:
        raise UserError(
            f"optimizer_cls_and_kwargs: {', '.join(set_there)} is a phase's to say; remove it there"
        )
    takes = inspect.signature(kind).parameters
    unknown = [name for name in options if name not in takes]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in takes.values()):
        raise UserError(
            f"optimizer_cls_and_kwargs: {getattr(kind, '__name__', kind)} does not take "
            f"{', '.join(unknown)}; it takes {', '.join(n for n in takes if n not in ours)}"
        )


def _check_objects(own: Mapping[str, Any]) -> None:
    """Raise UserError for an argument of Trainer's `own` that is not of the kind it must be."""
    for name in ("train_dataset", "eval_dataset"):
        given = own.get(name)
        for each in given.values() if isinstance(given, dict) else [given]:
            by_place = hasattr(each, "__getitem__") and not isinstance(each, str | Path)
            if each is not None and not by_place and not isinstance(each, STREAMS):
                raise UserError(
                    f"{name} is {_kind(each)}; pass data.train or data.validation of load_data, "
                    "or a Dataset or IterableDataset whose items hold pixel_values and labels"
                )
    collator, callbacks = own.get("data_collator"), own.get("callbacks")
    if collator is not None and not callable(collator):
        raise UserError(f"data_collator is {_kind(collator)}; pass a function, or leave it out")
    listed = callbacks is None or isinstance(callbacks, list | tuple)
    for each in callbacks or () if listed else [callbacks]:
        kind = each if isinstance(each, type) else type(each)
        if not listed or not issubclass(kind, TrainerCallback):
            raise UserError(
                f"callbacks: one is {_kind(each)}; pass a list of transformers' TrainerCallback"
            )


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def check_taken(args: TrainingArguments, phases: Sequence[Any]) -> None:
    """Warn of an argument that is a phase's to say, where every phase says its own; a limit of
    steps that limits nothing is a UserError."""
    usual = _usual()
    for name, key in A_PHASES.items():
        value = getattr(args, name)
        keys = {"epochs", "steps"} if key in ("epochs", "steps") else {key}
        says = [not isinstance(each, dict) or bool(keys & set(each)) for each in phases]
        if phases and all(says) and value != usual.get(name):
            text = f"{name}={value!r} is a phase's to say ({key}), and each phase says its own"
            if name == "max_steps":
                raise UserError(f"{text}; remove {name}")
            logger.warning("%s; it is not used", text)


def best_of(args: TrainingArguments) -> dict[str, str]:
    """Return the key `best` of a phase by the arguments; nothing where they do not ask for it."""
    if not args.metric_for_best_model:
        return {}
    return {"best": args.metric_for_best_model.removeprefix("eval_")}


def _check_best(args: TrainingArguments) -> None:
    metric = args.metric_for_best_model
    if not metric or args.greater_is_better is None:
        return
    ours = not stopping.lower_is_better(metric)
    transformers_own = not metric.endswith("loss")  # what it sets where a user sets nothing
    if args.greater_is_better not in (ours, transformers_own):
        word = "more" if ours else "less"
        raise UserError(
            f"greater_is_better={args.greater_is_better} is refused, because {word} of "
            f"{metric!r} is better; remove it"
        )


def _usual() -> dict[str, Any]:
    """Return the default of each field."""
    return {
        f.name: f.default if f.default is not MISSING else f.default_factory()
        for f in fields(TrainingArguments)
        if f.default is not MISSING or f.default_factory is not MISSING
    }
