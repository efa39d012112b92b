"""Write the pages of docs/ that are taken from the program: its commands, its prompts, its measured speed.

Run ``make docs``; a test fails when a page is not what this file writes.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MADE = "*Written by `make docs`; don't edit.*"


def commands() -> str:
    """Return cli.md, from the command line's own definitions."""
    import typer.main

    from xatlas.cli import app

    head = (
        f"# The command line\n\n{MADE}\n\n"
        "Results go to stdout, progress and logs to stderr. Exit code 0: all done; 1: something failed (it is named "
        "at the\nend, the rest is kept); 2: the command was not understood.\n"
    )
    return "\n".join([head, *_command(typer.main.get_command(app), "xatlas")])


def _command(command: Any, path: str) -> list[str]:
    lines = [f"## `{path}`", "", (command.help or "").strip(), ""]
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option"]
    if arguments:
        lines += ["| argument | |", "| --- | --- |", *(_argument(item) for item in arguments), ""]
    if options:
        lines += ["| option | default | |", "| --- | --- | --- |", *(_option(item) for item in options), ""]
    for name, inner in getattr(command, "commands", {}).items():
        lines += _command(inner, f"{path} {name}")
    return lines


def _argument(item: Any) -> str:
    name = (item.name or "").upper()
    return f"| `{name}` | {_cell(item.help)}{'' if item.required else ' (may be left out)'} |"


def _option(item: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*item.opts, *item.secondary_opts))
    value = f" `{_cell(item.metavar)}`" if item.metavar else ""
    if item.required:
        default = "required"
    elif item.is_flag or item.default in (None, "", ()) or item.show_default is False:
        default = ""
    else:
        default = f"`{item.default}`"
    return f"| {names}{value} | {default} | {_cell(item.help)} |"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def families() -> str:
    """Return families.md: one prompt of each family, as the suites hold it."""
    from xatlas.manager import suites

    lines = ["# The built-in families", "", MADE, "", "The first prompt of each. `⏎` stands for a line break."]
    for name in ("quick", "transfer"):
        suite = suites()[name].load()
        lines += ["", f"## Suite `{name}`", "", "| family | text | target | foil |", "| --- | --- | --- | --- |"]
        for family in suite.families:
            first = next(prompt for prompt in suite if prompt.family == family)
            cells = (_code(text) for text in (first.text, first.target, first.foil))
            lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _code(text: str | None) -> str:
    return "–" if text is None else f"`` {text.replace(chr(10), '⏎').replace('|', chr(92) + '|')} ``"


SPEED = """# Speed

{made}

`make bench` runs [`benchmarks/sweep.py`](../benchmarks/sweep.py). It does the same sweep in three ways, in one process
and in turn:

1. the engine;
2. *prompt by prompt*: hooks on whole Hugging Face forwards, one prompt and one condition at a time;
3. *bucketed*: the same, but all prompts of one length in a forward, and `logits_to_keep=1`.

The layer sweep replaces each layer's operator output, MLP output and both by their means, with a random-direction
control each; the head sweep does the same to every attention head. KL is read at the readout position, and prompts end
there. All three get the same prompts, means, random directions (the baselines get them ready made) and the same
evenly spaced subset of conditions. *Rate* is the share of the machine's matrix-multiply rate that the engine reaches:
flop of all linear layers that it ran, per second, over the rate of the bare multiplications on the model's own layer
shapes with the same threads. *Over weights* is the peak memory of the process, less the weights.

`smollm2-135m-q4` are trained weights that were quantised to 4 bits and are computed in float32;
`lfm2.5-230m-shape` has random weights in the exact shape of LFM2.5-230M.

[`benchmarks/probes.py`](../benchmarks/probes.py) catches what each causal probe asks of the engine and measures an
evenly spaced subset of it both ways; attribution patching is set against exact patching of the same cells.
[`benchmarks/steering.py`](../benchmarks/steering.py) times a whole steering sweep; the plain way is timed on
24 of its conditions and scaled.

`make bench-reading` runs [`benchmarks/reading.py`](../benchmarks/reading.py). It sets the nine probes of what a model
holds against *one plain forward*: Hugging Face's own, over the same prompts in batches of one length, every position
unembedded. The *shared pass* is the one that feeds all of them but `attention_patterns`, with `model_card` and
`embedding_structure`; much of it is the lens, which unembeds the stream at every readout twice a layer. The *eager
pass* is that of `attention_patterns`, which also reads random tokens, repeated, for every prompt: more than the prompts
themselves have. *Gram matrices* is what CKA computes at the end. The ways take turns in one process; ratios are medians
over rounds. *Over weights* is the peak while all nine are measured, on half of a suite and on all of it.

`make bench-training` runs [`benchmarks/training.py`](../benchmarks/training.py). It trains the same LoRA weights on the
same examples through xatlas and through TRL as one calls it without, in turn, the making of the trainer included.

[`benchmarks/capability.py`](../benchmarks/capability.py) sets `capability`, with all that it does, against Hugging
Face's `generate` on the same prompts in the same batches. Both must write the same answers, but for those in which the
two likeliest tokens lie within 1e-4; these are counted as ties.

## Measured
"""
PROBES_HEAD = (
    "| probe | model | conditions × prompts | engine | prompt by prompt | ratio | largest difference (metric's unit) |"
)
READING_HEAD = (
    "| model | prompts | tokens | plain forward | shared pass | eager pass | Gram matrices "
    "| nine probes, three miniatures |"
)
TRAINING_HEAD = "| method | model | steps | TRL, a step | xatlas, a step | ratio |"
SPEED_HEAD = (
    "| model | sweep | conditions × prompts | engine | over prompt by prompt | over bucketed | rate "
    "| largest difference (nats) | over weights |"
)


def speed() -> str:
    """Return benchmarks.md, with one table for each file in benchmarks/results."""
    lines = [SPEED.format(made=MADE)]
    files = sorted((FOLDER.parent / "benchmarks" / "results").glob("*.json"))
    before = ""
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        where = "" if found["device"].startswith("cuda") else f", {found['threads']} thread(s)"
        clock = ", CPU time" if found["clock"] == "cpu" else ""
        heading = f"### {found['machine']}{where}, {found['dtype']}, torch {found['torch']}{clock}"
        if heading != before:
            lines += [heading, ""]
            before = heading
        if found.get("rows"):
            lines += [SPEED_HEAD, "| --- " * 9 + "|", *(_speed_row(row) for row in found["rows"]), ""]
        if found.get("probes"):
            lines += [PROBES_HEAD, "| --- " * 7 + "|", *(_probe_row(row) for row in found["probes"]), ""]
        if found.get("reading"):
            lines += [READING_HEAD, "| --- " * 8 + "|", _reading_row(found["reading"]), ""]
            lines += [_memory_line(found["reading"]), ""]
            lines += [f"Of {found['cores']} cores, with a load of {found['load']:.0f} when it began.", ""]
        if found.get("training"):
            lines += [TRAINING_HEAD, "| --- " * 6 + "|", *(_training_row(row) for row in found["training"]), ""]
            lines += [f"A measurement on {found['held_out']} held-out prompts: {found['held_out_s']:.1f} s.", ""]
        if found.get("capability"):
            lines += ["| model | tests | tokens | capability | plain generate | ratio | answers with ties |"]
            lines += ["| --- " * 7 + "|", _capability_row(found["capability"]), ""]
        if found.get("scaling"):
            lines += ["Time and memory as prompts grow (layer sweep, engine alone):", ""]
            lines += ["| model | prompts | tokens | seconds | µs per token and condition | over weights |"]
            lines += ["| --- " * 6 + "|", *(_scaling_row(row) for row in found["scaling"]), ""]
    if not files:
        lines.append("Nothing has been measured yet.\n")
    return "\n".join(lines)


def _speed_row(row: dict[str, Any]) -> str:
    return (
        f"| {row['model']} | {row['sweep']} | {row['conditions']} × {row['prompts']} | {row['engine_s']:.3g} s "
        f"| {row['ratio_prompt_by_prompt']:.1f} × | {row['ratio_bucketed']:.1f} × "
        f"| {row['share_of_multiply_rate']:.2f} | {row['difference']:.0e} | {row['peak_over_weights_gb']:.2f} GB |"
    )


def _probe_row(row: dict[str, Any]) -> str:
    difference = "–" if row["difference"] != row["difference"] else f"{row['difference']:.0e}"
    return (
        f"| {row['probe']} | {row['model']} | {row['conditions']} × {row['prompts']} | {row['engine_s']:.2f} s "
        f"| {row['prompt_by_prompt_s']:.1f} s | {row['ratio']:.1f} × | {difference} |"
    )


def _reading_row(row: dict[str, Any]) -> str:
    parts = (f"{row[f'{part}_over_plain']:.2f} ×" for part in ("pass", "eager", "gram"))
    return (
        f"| {row['model']} | {row['prompts']} | {row['tokens']} | {row['plain_s']:.1f} s | {' | '.join(parts)} "
        f"| {row['miniatures_s']:.0f} s |"
    )


def _training_row(row: dict[str, Any]) -> str:
    return (
        f"| {row['method']} | {row['model']} | {row['steps']} | {row['trl_s']:.3f} s | {row['xatlas_s']:.3f} s "
        f"| {row['ratio']:.2f} × |"
    )


def _capability_row(row: dict[str, Any]) -> str:
    return (
        f"| {row['model']} | {row['tests']} | {row['tokens']} | {row['xatlas_s']:.1f} s | {row['plain_s']:.1f} s "
        f"| {row['ratio']:.2f} × | {row['with_ties']} |"
    )


def _memory_line(row: dict[str, Any]) -> str:
    parts = (f"{row[f'{part}_over_weights_gb']:.2f} GB on {row[f'{part}_prompts']}" for part in ("half", "whole"))
    return f"Over weights: {', '.join(parts)} prompts of the {row['memory_suite']} suite."


def _scaling_row(row: dict[str, Any]) -> str:
    return (
        f"| {row['model']} | {row['prompts']} | {row['tokens']} | {row['engine_s']:.3g} "
        f"| {row['us_per_token_and_condition']:.3g} | {row['peak_over_weights_gb']:.2f} GB |"
    )


ARCHITECTURES = """# Architectures

{made}

{count} classes of transformers have an adapter. Each is held to plain hooks over whole Hugging Face forwards, whose
module names stand in a table of the tests' own (`tests/plain_names.py`), on a tiny random model with a layer of every
type. `make classes` measures what stands here, on transformers {transformers} and torch {torch}:

- *operators*: the types of its layers.
- *heads*: the types of layers whose heads are sites.
- *sites*: those beside `resid_pre`, `operator_out` and `resid_post`, which all have, and `heads`.
- *steps*: whether the last position can be run by itself, on the model's own cache, where only it is changed. Where
  not, results are the same, and sweeps of the readout take longer.
- *gap*: the largest difference from plain hooks, in nats of KL, over zero and mean ablation of whole layers, zero
  ablation of heads, and steering at the readout. Effects are mostly between 0.1 and 10 nats. The tests allow 10⁻⁴
  and 10⁻⁵ of the effect.

`xatlas check --model FOLDER` judges an adapter on a model's own weights. A model with fields of its config that no tiny
model has is proved when it is loaded, as every model is.

| class | aliases | operators | heads | sites | steps | gap: layers | gap: heads | gap: steering |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

## Without steps

| class | why |
| --- | --- |
{slow}

## Without an adapter

Classes that were looked at and left out. The message for any class that has none names the nearest that has one;
encoder-decoders and diffusion models are told apart.

| class | why |
| --- | --- |
{missing}

`xatlas adapter suggest CLASS` writes a first adapter. Measured on {measured} classes of the first table, as if
none had one: for {passing} what it writes passes its check, for {sure} of these without a question left in the file.

| else | what it says |
| --- | --- |
{failing}

`router` can be read, not changed: a changed choice of experts is not a change of one value.

Heads of Falcon-H1 are those of its attention: a site kind stands for one place in a layer, so that the heads of the
state space beside it are none. Where a layer is a state space alone, its heads are sites.
"""
#: Alias of a public checkpoint → its class.
CLASS_OF = {
    "bloom-560m": "BloomForCausalLM",
    "gemma3-270m": "Gemma3ForCausalLM",
    "falcon-h1-0.5b": "FalconH1ForCausalLM",
    "gpt-neo-125m": "GPTNeoForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "granite-moe-1b": "GraniteMoeForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2-mini": "Lfm2ForCausalLM",
    "llama3.2-1b": "LlamaForCausalLM",
    "mamba-130m": "MambaForCausalLM",
    "olmo2-1b": "Olmo2ForCausalLM",
    "phi1.5": "PhiForCausalLM",
    "pythia-160m": "GPTNeoXForCausalLM",
    "pythia-1b": "GPTNeoXForCausalLM",
    "qwen": "Qwen2ForCausalLM",
    "qwen-mini": "Qwen2ForCausalLM",
    "qwen3-0.6b": "Qwen3ForCausalLM",
    "smollm2": "LlamaForCausalLM",
    "smollm2-135m": "LlamaForCausalLM",
    "smollm2-135m-q4": "LlamaForCausalLM",
    "smollm2-mini": "LlamaForCausalLM",
    "stablelm2-1.6b": "StableLmForCausalLM",
    "tinyllama": "LlamaForCausalLM",
    "zamba2-1.2b": "Zamba2ForCausalLM",
}
#: Why a class has no steps.
_TIME = "transformers heeds the config's `time_step_min` on whole prompts, and not in its steps on a cache"
WITHOUT_STEPS = {
    "NemotronHForCausalLM": _TIME,
    "RecurrentGemmaForCausalLM": "its recurrent layers keep their states in the modules themselves: no cache to copy",
    "RwkvForCausalLM": "its states are tensors of all layers together, in no cache whose rows can be picked",
    "Zamba2ForCausalLM": _TIME,
    "xLSTMForCausalLM": "its states are a dictionary of its own kind, whose rows transformers doesn't pick",
}
#: Why classes have no adapter.
WITHOUT_ADAPTER = {
    ("MiniMaxForCausalLM",): "layers norm the stream itself, or multiply it, before they add to it: what layers add "
    "doesn't sum to the stream",
    ("ZayaForCausalLM",): "layers scale the stream itself, channel by channel, before they add to it",
    ("RwkvForCausalLM",): "has an adapter, and is refused where `rescale_every` halves the stream between layers: "
    "set it to 0",
    ("DiffLlamaForCausalLM",): "a head is the difference of two, and the weights that it gives are those of one: "
    "heads and patterns don't belong together",
    ("DbrxForCausalLM",): "with its config's own default (`clip_qkv`: none) transformers' forward fails, so that there "
    "is no tiny model to check an adapter on",
}


def architectures() -> str:
    """Return architectures.md: a row for every registered class, with what ``measure.py`` found."""
    from xatlas.manager import adapters, models

    found = json.loads((FOLDER / "architectures.json").read_text(encoding="utf-8"))
    aliases: dict[str, list[str]] = {}
    for alias in sorted(models()):
        aliases.setdefault(CLASS_OF[alias.partition(":")[0]], []).append(f"`{alias}`")  # of another training seed, too
    rows, slow = [], []
    for name in sorted(adapters(), key=str.lower):
        one, own = found["classes"].get(name), ", ".join(aliases.get(name, ["–"]))
        if one is None:
            rows.append(f"| `{name}` | {own} | not measured |||||||")
            continue
        sites = [kind for kind in one["sites"] if kind not in ("resid_pre", "operator_out", "resid_post", "heads")]
        cells = [", ".join(words) or "–" for words in (one["operators"], one["heads"], sites)]
        gaps = (f"{one['gaps'][word]:.0e}" if word in one["gaps"] else "–" for word in ("layers", "heads", "steering"))
        rows.append(
            f"| `{name}` | {own} | {' | '.join(cells)} | {'yes' if one['steps'] else 'no'} | {' | '.join(gaps)} |"
        )
        if not one["steps"]:
            slow.append(f"| `{name}` | {WITHOUT_STEPS[name]} |")
    missing = [f"| {', '.join(f'`{name}`' for name in names)} | {why} |" for names, why in WITHOUT_ADAPTER.items()]
    suggested = {name: one["suggested"] for name, one in found["classes"].items()}
    failing = [f"| `{name}` | {one['verdict']} |" for name, one in suggested.items() if one["verdict"]]
    sure = sum(not one["verdict"] and not one["questions"] for one in suggested.values())
    parts = {"rows": rows, "slow": slow, "missing": missing, "failing": failing}
    text = {part: "\n".join(lines) for part, lines in parts.items()}
    counts = {
        "count": len(adapters()),
        "measured": len(suggested),
        "passing": len(suggested) - len(failing),
        "sure": sure,
    }
    return ARCHITECTURES.format(made=MADE, **counts, **found["versions"], **text)


PAGES: dict[str, Callable[[], str]] = {
    "architectures.md": architectures,
    "cli.md": commands,
    "families.md": families,
    "benchmarks.md": speed,
}


def picture(out: Path) -> None:
    """Put the hub's figure and table, as ``xatlas compare`` made them below ``out``, into the README."""
    import xarray as xr

    from xatlas.cli.output import fitting, print_table
    from xatlas.manager import comparisons

    hub = comparisons()["hub"]()
    with xr.open_dataset(out / "figures" / "hub.nc") as dataset:
        rows = hub.table(dataset.load())
    (FOLDER / "images" / "hub.png").write_bytes((out / "figures" / "hub.png").read_bytes())
    readme = FOLDER.parent / "README.md"
    before, start, rest = readme.read_text(encoding="utf-8").partition("<!-- table: written by `make picture` -->\n")
    _, end, after = rest.partition("<!-- end of table -->")
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_table(fitting(rows)[0])
    readme.write_text(f"{before}{start}```\n{text.getvalue()}```\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        picture(Path(sys.argv[1]))
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
