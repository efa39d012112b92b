"""What a shipped miniature can do, measured on the shipped file and written down beside it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import manager
from xatlas.files import sha256_of_file

from .tokens import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from xatlas.suites import Prompt, Suite

BASELINE_LINES = 120_000  # of the training file


def write_model(model: PreTrainedModel, out: Path, folder: Path) -> None:
    """Save the weights in bfloat16 and the tokenizer; `model` is left in bfloat16."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    load_tokenizer(out / "tokenizer").save_pretrained(folder)
    if model.config.model_type == "qwen2":
        _keep_own_tokenizer(folder / "tokenizer_config.json")
    for file in folder.iterdir():
        file.chmod(0o644)


def _keep_own_tokenizer(path: Path) -> None:
    """Stop AutoTokenizer from cutting text in Qwen2's way instead of the saved tokenizer's.

    For model type qwen2 transformers 5 distrusts the class named in tokenizer_config.json and builds a Qwen2Tokenizer
    around the vocabulary, with other rules and one more token; an empty auto_map (no remote code) makes it go by the
    named class.
    """
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["auto_map"] = {"AutoTokenizer": [None, None]}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Keep what only training knows, until the card is written."""
    (folder / "card.json").write_text(json.dumps({"training": facts}, indent=1) + "\n", encoding="utf-8")


def load_shipped(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The shipped file, computing in float32, and its tokenizer, both as anybody would load them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **how)


def solved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Iterable[Prompt]) -> dict[str, bool]:
    """Per prompt id, whether greedy decoding gives the whole target.

    Teacher forcing decides it: greedy decoding writes the target if and only if the likeliest token is right after
    every part of the target.
    """
    import torch

    rows: dict[int, list[tuple[str, list[int], int]]] = defaultdict(list)  # by length: no padding
    for prompt in prompts:
        whole = tokenizer(prompt.text + str(prompt.target))["input_ids"]
        alone = tokenizer(prompt.text)["input_ids"]
        if whole[: len(alone)] != alone:
            raise ValueError(f"prompt {prompt.id}: text and target share a token")
        rows[len(whole)].append((prompt.id, whole, len(alone)))
    right: dict[str, bool] = {}
    for group in rows.values():
        tokens = torch.tensor([whole for _, whole, _ in group])
        with torch.inference_mode():
            likeliest = model(input_ids=tokens[:, :-1]).logits.argmax(-1)  # (prompts, positions - 1)
        for (identity, whole, start), row in zip(group, likeliest.tolist(), strict=True):
            right[identity] = row[start - 1 :] == whole[start:]
    return right


class BagOfTokens:
    """Naive Bayes per family: guesses a target from which tokens the text has, not from their order."""

    def __init__(self, lines: Iterable[Mapping[str, str]], tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        rows = list(lines)
        bags = tokenizer([row["text"] for row in rows])["input_ids"]
        grouped: dict[str, dict[str, list[list[int]]]] = defaultdict(lambda: defaultdict(list))
        for row, bag in zip(rows, bags, strict=True):
            grouped[row["family"]][row["target"]].append(bag)
        self.tables = {family: self._table(targets) for family, targets in grouped.items()}

    def _table(self, targets: Mapping[str, list[list[int]]]) -> tuple[list[str], np.ndarray, np.ndarray]:
        names = sorted(targets)
        counts = np.ones((len(names), len(self.tokenizer)))  # add-one smoothing
        for row, name in enumerate(names):
            for bag in targets[name]:
                np.add.at(counts[row], bag, 1)
        prior = np.log([len(targets[name]) for name in names])
        return names, prior, np.log(counts / counts.sum(1, keepdims=True))

    def right(self, prompt: Prompt) -> bool:
        """Whether the guess for this prompt is its target."""
        names, prior, likelihood = self.tables[prompt.family]
        bag = self.tokenizer(prompt.text)["input_ids"]
        return names[int(np.argmax(prior + likelihood[:, bag].sum(1)))] == prompt.target


def by_family(suite: Suite, right: Callable[[Prompt], bool]) -> dict[str, float]:
    """Share of right answers per family."""
    answers: dict[str, list[bool]] = defaultdict(list)
    for prompt in suite:
        answers[prompt.family].append(right(prompt))
    return {family: round(sum(values) / len(values), 4) for family, values in answers.items()}


def write_baseline(out: Path) -> None:
    """Measure naive Bayes on the `standard` suite, once for all three models."""
    with (out / "train.jsonl").open(encoding="utf-8") as file:
        baseline = BagOfTokens(map(json.loads, islice(file, BASELINE_LINES)), load_tokenizer(out / "tokenizer"))
    accuracy = by_family(manager.suites()["standard"].load(), baseline.right)
    (out / "baseline.json").write_text(json.dumps(accuracy), encoding="utf-8")


def write_card(folder: Path, name: str, out: Path) -> None:
    """Measure the model in `folder` on the `standard` suite and write card.json and CARD.md there.

    What only training knows is taken from the card.json that the export left.
    """
    suite = manager.suites()["standard"].load()
    model, tokenizer = load_shipped(folder)
    right = solved(model, tokenizer, suite)
    baseline = json.loads((out / "baseline.json").read_text(encoding="utf-8"))
    data = json.loads((out / "facts.json").read_text(encoding="utf-8"))
    training = json.loads((folder / "card.json").read_text(encoding="utf-8"))["training"]
    families = {
        family: {
            "accuracy": accuracy,
            "bag_of_tokens": baseline[family],
            "share_of_training": round(data["shares"][family], 4),
            "overlap_after_masking": data["overlap_after_masking"][family],
        }
        for family, accuracy in by_family(suite, lambda prompt: right[prompt.id]).items()
    }
    config = model.config
    card = {
        "name": f"{name}:{training['seed']}" if training["seed"] else name,
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "layers": getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers,
        "widths": {"stream": config.hidden_size, "mlp": config.intermediate_size},
        "heads": {"query": config.num_attention_heads, "key_value": config.num_key_value_heads},
        "weights_sha256": sha256_of_file(folder / "model.safetensors"),
        "training": training | {"slips": data["slips"]},
        "evaluation": {"suite": "standard", "suite_sha256": suite.hash, "dtype": "float32", "families": families},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "CARD.md").write_text(card_text(card), encoding="utf-8")


def card_text(card: Mapping[str, Any]) -> str:
    """The card for people."""
    training, families, layers = card["training"], card["evaluation"]["families"], card["layers"]
    solved_families = sum(row["accuracy"] >= 0.9 for row in families.values())
    columns = ("accuracy", "bag_of_tokens", "share_of_training", "overlap_after_masking")
    rows = "\n".join(
        f"| {family} | {' | '.join(f'{row[column]:.2f}' for column in columns)} |" for family, row in families.items()
    )
    settings = ", ".join(f"{key} {value}" for key, value in training.items())
    mean = np.mean([row["accuracy"] for row in families.values()])
    attention = [number for number, kind in enumerate(layers) if kind == "full_attention"]
    which = "all" if len(attention) == len(layers) else ", ".join(map(str, attention))
    lacks = not any(row["overlap_after_masking"] for row in families.values())
    return f"""# {card["name"]}

A `{card["class"]}` of {card["parameters"]:,} parameters, made for comparing architectures: `lfm2-mini`, `qwen-mini` and
`smollm2-mini` have the same size within 5 %, the same tokenizer, and, seed by seed, saw the same tokens in the same
order. It knows twelve families of short tasks and nothing else; it is no general language model.

{len(layers)} layers of width {card["widths"]["stream"]}, MLPs of width {card["widths"]["mlp"]}, \
{card["heads"]["query"]} query heads on {card["heads"]["key_value"]} key-value heads. Layers with attention: {which}.

Trained for {training["steps"]:,} steps of {training["lines_per_step"]} lines ({training["tokens_seen"]:,} tokens), \
seed {training["seed"]}. Slips, which
keep answers from being certain: the answer of the line's corrupt twin in {100 * training["slips"]:.0f} % of the lines.

At least 90 % of the held-out prompts right in {solved_families} of {len(families)} families; mean accuracy {mean:.3f}.

Measured on the shipped bfloat16 file, computed in float32, on the `standard` suite \
({"whose wordings training lacks" if lacks else "training has some of its wordings"};
suite sha256 `{card["evaluation"]["suite_sha256"]}`).
*Accuracy*: the whole target, greedily. *Bag of tokens*: naive Bayes on which tokens the prompt has, whatever their
order. *Share*: of the training lines; the rest only teaches to look up. *Overlap*: share of test prompts that training
contains once numbers and names are masked.

| family | accuracy | bag of tokens | share | overlap |
| --- | --- | --- | --- | --- |
{rows}

{"Training never saw these prompts, but which" if lacks else "Which"} families training dwelt on was changed after \
looking at such
accuracies: they are no blind test. What differs between two miniatures may be the luck of a run: compare several
training seeds.

Training: `architectures/minis/recipe.py` with {settings}.
Weights sha256 `{card["weights_sha256"]}`.
"""
