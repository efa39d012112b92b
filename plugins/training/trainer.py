"""One fine-tuning run through TRL: LoRA weights on some modules, by SFT, QLoRA, DPO or GRPO."""

from __future__ import annotations

import copy
import math
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from xatlas.errors import XatlasError
from xatlas.loading.loader import quiet_transformers
from xatlas.model import HookedModel
from xatlas.plugins.training.data import Example, answers, needed
from xatlas.plugins.training.targets import Targets
from xatlas.text import first_line

Method = Literal["sft", "qlora", "dpo", "grpo"]
METHODS: tuple[Method, ...] = get_args(Method)
#: Completions that GRPO compares with each other.
GROUP = 8
#: Weight of the KL to the base: DPO's as in its paper; GRPO's, which TRL leaves out unless told.
BETA: Mapping[str, float] = {"dpo": 0.1, "grpo": 0.04}


@dataclass(frozen=True)
class Run:
    """Settings of one run; LoRA weights are scaled by ``alpha / rank``, twice as large as the rank unless said."""

    method: Method = "sft"
    rank: int = 8
    alpha: float | None = None
    learning_rate: float = 1e-3
    steps: int = 100
    batch: int = 8  # examples of a step; of GRPO, prompts
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "batch"):
            if getattr(self, name) < 1:
                raise XatlasError(f"{name} = {getattr(self, name)} does not fit: it takes a whole number from 1.")
        if not 0 < self.learning_rate < 1:
            what = f"learning rate = {self.learning_rate:g} does not fit"
            raise XatlasError(f"{what}: it takes a number above 0, below 1.")


@dataclass(frozen=True)
class Tuned:
    """A model with LoRA weights on it, while it is held."""

    model: HookedModel  # with the weights in it
    peft: Any
    modules: int
    parameters: int


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    reward: float | None = None  # of GRPO's completions: its loss is about 0 whatever is learnt

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        speed = f"{self.tokens_per_second:,.0f} tokens/s"
        learnt = f"loss {self.loss:.4g}" if self.reward is None else f"reward {self.reward:.3g}"
        return f"step {self.step}/{self.steps}, {learnt}, {speed}, {minutes}:{seconds:02d} left"


@contextmanager
def lora(model: HookedModel, targets: Targets, run: Run) -> Iterator[Tuned]:
    """Put LoRA weights on a model, which change nothing yet, and take them off again.

    The first matrix is drawn by the run's seed, the second is zero. Of QLoRA the weights go on a copy in four bits.
    """
    from peft import LoraConfig, get_peft_model

    modules, alpha = list(targets.modules), run.alpha or 2 * run.rank
    config = LoraConfig(r=run.rank, lora_alpha=alpha, target_modules=modules, task_type="CAUSAL_LM")
    held = in_four_bits(model) if run.method == "qlora" else model
    hf = held.model
    with torch.random.fork_rng(devices=[]), quiet_transformers(), torch.inference_mode(False):
        torch.manual_seed(run.seed)
        try:
            peft = get_peft_model(hf, config)
        except ValueError as error:
            raise XatlasError(f"these modules can't take LoRA weights ({first_line(error)})") from error
    try:
        trained = [weight.numel() for weight in peft.parameters() if weight.requires_grad]
        adapted = sum(hasattr(module, "lora_A") and hasattr(module, "base_layer") for module in peft.modules())
        if adapted != len(targets.modules):
            raise XatlasError(f"peft adapts {adapted} modules, not the {len(targets.modules)} that were meant.")
        yield Tuned(held, peft, adapted, sum(trained))
    finally:
        vars(hf).pop("forward", None)  # trl puts another one on the model
        hf.train(False)
        peft.unload()
        hf.requires_grad_(False)


def in_four_bits(model: HookedModel) -> HookedModel:
    """Return a copy whose linear modules, but for the unembedding, are stored in NF4.

    bitsandbytes repacks weights in a forward without gradients on CPUs with AVX512-BF16, and the next backward takes
    them for unpacked ones: that is switched off.
    """
    bnb, device = needed("bitsandbytes"), model.device
    hf = copy.deepcopy(model.model)
    unembedding = hf.get_output_embeddings()
    for path, module in list(hf.named_modules()):
        if type(module) is not torch.nn.Linear or module is unembedding:
            continue
        made = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=model.dtype,
            compress_statistics=False,
            quant_type="nf4",
        ).to(module.weight.dtype)
        made.load_state_dict(module.state_dict())
        made.support_avx512bf16_for_cpu = False
        hf.set_submodule(path, made.requires_grad_(False).to(device))  # which packs the weight
    hf.is_loaded_in_4bit = True
    return HookedModel(hf, model.tokenizer, slug=model.slug, adapter=type(model.adapter)(hf), prove=False)


def train(
    tuned: Tuned,
    examples: Sequence[Example],
    run: Run,
    *,
    folder: Path | None = None,  # for checkpoints; where it holds some of this run, it goes on from the last
    every: int = 0,  # steps between checkpoints
    progress: Callable[[Progress], None] = lambda _: None,
    watch: Callable[[int], None] = lambda _: None,  # called after each step, with its number
) -> None:
    """Train the LoRA weights; a resumed run ends as one that was not interrupted.

    Refused where the loss is not finite, memory fails one example, or the examples lack what the method needs.
    """
    batch, accumulate = run.batch, 1
    rows = _rows(examples, run)
    start = copy.deepcopy({name: weight for name, weight in tuned.peft.named_parameters() if weight.requires_grad})
    with tempfile.TemporaryDirectory() as empty:
        place = Path(empty) if folder is None else folder
        while True:
            last = _last_checkpoint(place)
            try:
                with quiet_transformers(), torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng([]):
                    settings = _settings(tuned.model, rows, run, batch, accumulate)
                    settings["output_dir"] = str(place)
                    if folder is not None and every:
                        settings |= {"save_strategy": "steps", "save_steps": every, "save_total_limit": 2}
                    _attempt(tuned, rows, run, settings, last, _callback(run, progress, watch))
                return
            except (MemoryError, RuntimeError) as error:
                named = isinstance(error, torch.OutOfMemoryError | MemoryError)
                if not named and not re.search("out of memory|not enough memory|can't allocate memory", str(error)):
                    raise
                if batch == 1:
                    what = "memory does not suffice for a batch of one example"
                    raise XatlasError(f"{what}: shorten the examples, or train fewer modules.") from error
                batch = batch // 2 if run.batch % (batch // 2) == 0 else 1
                accumulate = run.batch // batch
                torch.cuda.empty_cache()
                tuned.peft.load_state_dict(start, strict=False)
                tuned.peft.zero_grad()
                print(f"xatlas: out of memory: batches of {batch}, {accumulate} to a step", file=sys.stderr)


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that is whole: its state is written last."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def _rows(examples: Sequence[Example], run: Run) -> list[dict[str, Any]]:
    """Return the examples of every step, in the order in which they are seen, as the method's trainer takes them."""
    usable = [each for each in examples if run.method != "dpo" or each.rejected]
    usable = [each for each in usable if run.method != "grpo" or each.answer]
    if not usable:
        lacks = {"dpo": "a rejected response", "grpo": "an answer"}.get(run.method, "a response")
        raise XatlasError(f"no example to train on has {lacks}, which {run.method} needs.")
    generator = random.Random(f"order|{run.seed}")
    order: list[Example] = []
    while len(order) < run.steps * run.batch:
        order += generator.sample(usable, len(usable))
    order = order[: run.steps * run.batch]
    if run.method == "dpo":
        return [{"prompt_ids": e.prompt, "chosen_ids": e.response, "rejected_ids": e.rejected} for e in order]
    if run.method == "grpo":
        return [{"prompt": " ".join(map(str, e.prompt)), "answer": e.answer, "length": len(e.response)} for e in order]
    return [{"input_ids": (*e.prompt, *e.response), "labels": (*(-100 for _ in e.prompt), *e.response)} for e in order]


def _attempt(
    tuned: Tuned, rows: list[dict[str, Any]], run: Run, settings: Mapping[str, Any], last: str | None, callback: Any
) -> None:
    """Train from the beginning, or from the checkpoint ``last``."""
    from transformers import PrinterCallback

    trl, datasets = needed("trl"), needed("datasets")
    name = {"dpo": "DPO", "grpo": "GRPO"}.get(run.method, "SFT")
    tokenizer, hf = copy.deepcopy(tuned.model.tokenizer), tuned.model.model
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    four_bits = vars(hf).pop("is_loaded_in_4bit", None)  # trl would turn the LoRA weights into bfloat16
    try:
        made = _trainer_class(trl, name)(
            model=tuned.peft,
            args=getattr(trl, f"{name}Config")(**settings),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[callback],
            **({"reward_funcs": _reward} if name == "GRPO" else {}),
        )
        made.remove_callback(PrinterCallback)  # stdout is for results
        made.train(resume_from_checkpoint=last)
    finally:
        if four_bits is not None:
            hf.is_loaded_in_4bit = four_bits
        hf.train(False)


def _settings(model: HookedModel, rows: list[dict[str, Any]], run: Run, batch: int, accumulate: int) -> dict[str, Any]:
    """Return what TRL is told of a run; where its checkpoints go is added."""
    settings: dict[str, Any] = {
        "max_steps": run.steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "constant",
        "seed": run.seed,
        # trl would compute in bfloat16 unless told otherwise
        "bf16": model.dtype == torch.bfloat16,
        "fp16": model.dtype == torch.float16,
        "use_cpu": model.device.type == "cpu",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    if run.method == "grpo":
        longest = max(int(row["length"]) for row in rows) + 1  # one more shows whether the answer ends there
        settings |= {"beta": BETA["grpo"], "num_generations": GROUP, "max_completion_length": longest}
        settings |= {"per_device_train_batch_size": batch * GROUP, "shuffle_dataset": False}
    elif run.method == "dpo":
        settings |= {"beta": BETA["dpo"], "max_length": None}
    else:
        settings |= {"max_length": None, "packing": False}  # packed rows would run into each other in convolutions
    return settings


def _reward(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    return [float(answers(text, wanted)) for text, wanted in zip(completions, answer, strict=True)]


def _trainer_class(trl: Any, name: str) -> Any:
    """Return TRL's trainer, which takes tokens as they are and in their order."""
    from torch.utils.data import SequentialSampler

    class Ours(getattr(trl, f"{name}Trainer")):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _tokenize_prompts(self, prompts: Sequence[str]) -> Any:
            return [list(map(int, prompt.split())) for prompt in prompts], None, {}

        if name != "GRPO":  # whose sampler repeats prompts, in their order

            def _get_train_sampler(self, dataset: Any = None) -> Any:
                return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    return Ours


def _callback(run: Run, progress: Callable[[Progress], None], watch: Callable[[int], None]) -> Any:
    from transformers import TrainerCallback

    class Ours(TrainerCallback):  # type: ignore[misc]
        """Follows the loss, and stops where it is no number."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started, self.first = time.perf_counter(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            logs = logs or {}
            for name in ("loss", "grad_norm"):
                value = float(logs.get(name, 0.0))
                if not math.isfinite(value):
                    what = f"the {name.replace('grad_norm', 'gradient')} is not finite at step {state.global_step}"
                    raise XatlasError(f"{what}: lower the learning rate, {run.learning_rate:g}.")
            if "loss" not in logs:
                return
            seconds, tokens = time.perf_counter() - self.started, float(logs.get("num_tokens", 0.0))
            done = max(1, state.global_step - self.first)
            left = seconds / done * (run.steps - state.global_step)
            speed, loss = tokens / max(seconds, 1e-9), float(logs["loss"])
            progress(Progress(state.global_step, run.steps, loss, speed, left, logs.get("reward")))

    return Ours()
