"""Changes to a model's folder, LoRA weights for it, and what the model computes, for the loading tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(10)[None]).logits


def write_lora(folder: Path, base: Path, **settings: object) -> torch.Tensor:
    """Save random LoRA weights for a base; return the logits that peft computes with them, unmerged."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, **{"target_modules": ["q_proj", "down_proj"], **settings}))
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(folder)
    return logits(tuned.eval())


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
