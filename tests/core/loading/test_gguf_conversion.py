"""What a GGUF file says is what is loaded, or the file is refused by the name of what is not converted."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import struct
from pathlib import Path
from typing import Any

import gguf as format_
import pytest
import torch
from gguf_writer import TOKEN_KIND, byte_vocabulary, write_gguf
from models import build as build_tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from xatlas import XatlasError, loading

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def build(kind: str, **changes: Any) -> Any:
    """Return a tiny model whose every parameter matters: no bias is 0, no norm is 1."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, **changes.pop("rope", {})}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    more: dict[str, Any] = {"conv_L_cache": 3, "block_auto_adjust_ff_dim": False} if kind == "lfm2" else {}
    if kind == "lfm2":
        more["layer_types"] = ["conv", "full_attention", "conv"]
    settings = {"vocab_size": 260, "num_hidden_layers": 3, "max_position_embeddings": 128, **sizes, **more}
    settings |= {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None, "rope_parameters": rope}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**settings, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model


def load(path: Path) -> Any:
    return loading.load(loading.resolve(str(path), progress=lambda line: None), device="cpu")


def kl(original: Any, loaded: Any) -> float:
    tokens = torch.randint(0, 256, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        p, q = (torch.log_softmax(model(tokens).logits.double(), -1) for model in (original, loaded))
    return float((p.exp() * (p - q)).sum(-1).max())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 0.03}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 16, "num_key_value_heads": 1, "rope": {"rope_theta": 777.0}}),
        ("llama", {"rope": LLAMA3}),
        ("llama", {"rope": YARN}),
        ("llama", {"rope": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}, "num_key_value_heads": 4}),
        ("llama", {"rope": {"rope_type": "linear", "factor": 3.0}}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 0.03, "rope": {"rope_theta": 1e6}}),
        ("qwen2", {"head_dim": 16, "rope": YARN}),
        ("qwen2", {"rope": {"rope_type": "linear", "factor": 3.0}}),
        ("qwen2", {"rope": LLAMA3}),
        ("lfm2", {}),
        ("qwen3", {"head_dim": 16}),
        ("lfm2", {"tie_word_embeddings": False, "norm_eps": 0.03, "rope": {"rope_theta": 777.0}}),
        ("lfm2", {"conv_bias": True, "conv_L_cache": 5, "block_auto_adjust_ff_dim": True, "block_multiple_of": 8}),
        ("lfm2", {"head_dim": 16, "layer_types": ["full_attention", "conv", "conv"], "rope": YARN}),
    ],
    ids=str,
)
def test_the_loaded_model_computes_what_the_original_does(tmp_path, kind, changes):
    original = build(kind, **changes)
    parts = load(write_gguf(tmp_path / "tiny.gguf", original))
    assert kl(original, parts.model) <= 1e-5
    assert parts.model.config.architectures == [type(original).__name__]
    with torch.inference_mode():  # nothing that hides behind a flat distribution
        tokens = torch.arange(100)[None]
        torch.testing.assert_close(parts.model(tokens).logits, original(tokens).logits, rtol=1e-4, atol=1e-3)


BIAS = torch.full((32,), 0.5)


@pytest.mark.parametrize(
    ("kind", "extra", "name"),
    [
        ("llama", {"metadata": {"llama.attn_logit_softcapping": 30.0}}, "llama.attn_logit_softcapping"),
        ("llama", {"metadata": {"llama.attention.sliding_window": 8}}, "llama.attention.sliding_window"),
        ("llama", {"metadata": {"llama.embedding_scale": 12.0}}, "llama.embedding_scale"),
        ("llama", {"metadata": {"llama.expert_count": 4}}, "llama.expert_count"),
        ("llama", {"metadata": {"llama.attention.causal": False}}, "llama.attention.causal"),
        ("llama", {"metadata": {"llama.rope.dimension_count": 4}}, "llama.rope.dimension_count"),
        ("llama", {"metadata": {"llama.attention.value_length": 16}}, "llama.attention.value_length"),
        ("llama", {"metadata": {"llama.rope.scaling.type": "longrope"}}, "llama.rope.scaling.type"),
        ("llama", {"metadata": {"llama.vocab_size": 300}}, "llama.vocab_size"),
        ("llama", {"metadata": {"llama.block_count": 2}}, r"blk\.2\."),
        ("llama", {"metadata": {"llama.block_count": 4}}, r"lacks the tensor .*layers\.3"),
        ("llama", {"metadata": {"llama.block_count": 10**9}}, "for 1000000000 layers"),
        ("llama", {"metadata": {"llama.attention.layer_norm_rms_epsilon": None}}, "layer_norm_rms_epsilon"),
        ("llama", {"metadata": {"llama.attention.head_count_kv": [2, 1, 2]}}, "llama.attention.head_count_kv"),
        ("llama", {"metadata": {"something.new": 1.0}}, "something.new"),
        ("llama", {"metadata": {"general.type": "adapter"}}, "general.type"),
        ("llama", {"metadata": {"split.count": 2}}, "split.count"),
        ("llama", {"metadata": {"general.architecture": "phi9"}}, "'phi9' is not converted, only lfm2, llama, qwen2"),
        ("llama", {"metadata": {"tokenizer.ggml.add_sep_token": True}}, "tokenizer.ggml.add_sep_token"),
        ("llama", {"metadata": {"tokenizer.ggml.pre": "from-tomorrow"}}, "from-tomorrow"),
        ("llama", {"metadata": {"tokenizer.ggml.model": "bert"}}, "bert"),
        ("llama", {"metadata": {"tokenizer.ggml.bos_token_id": 5000}}, "tokenizer.ggml.bos_token_id"),
        ("llama", {"metadata": {"tokenizer.ggml.tokens": None}}, "tokenizer.ggml.tokens"),
        ("llama", {"tensors": {"blk.1.attn_q.bias": BIAS}}, r"blk\.1\.attn_q\.bias"),
        ("llama", {"tensors": {"blk.0.attn_q_norm.weight": BIAS[:8]}}, r"blk\.0\.attn_q_norm\.weight"),
        ("llama", {"tensors": {"rope_factors_long.weight": BIAS[:4]}}, r"rope_factors_long\.weight"),
        ("llama", {"tensors": {"rope_freqs.weight": BIAS[:3]}}, r"rope_freqs\.weight"),
        ("llama", {"without": ("blk.1.ffn_up.weight",)}, r"layers\.1\.mlp\.up_proj\.weight"),
        ("llama", {"without": ("blk.1.attn_k.weight",), "tensors": {"blk.1.attn_k.weight": BIAS}}, r"blk\.1\.attn_k"),
        ("qwen2", {"tensors": {"blk.0.attn_output.bias": BIAS}}, r"blk\.0\.attn_output\.bias"),
        ("qwen2", {"without": ("blk.0.attn_q.bias",)}, r"layers\.0\.self_attn\.q_proj\.bias"),
        ("qwen2", {"metadata": {"qwen2.attention.sliding_window": 8}}, "qwen2.attention.sliding_window"),
        ("qwen2", {"metadata": {"qwen2.rope.scaling.yarn_attn_factor": 1.5}}, "yarn_attn_factor"),
        ("lfm2", {"metadata": {"lfm2.shortconv.l_cache": None}}, "lfm2.shortconv.l_cache"),
        ("lfm2", {"metadata": {"lfm2.shortconv.l_cache": 4}}, r"shortconv\.conv\.weight"),
        ("lfm2", {"metadata": {"lfm2.attention.head_count_kv": [0, 2]}}, "lfm2.attention.head_count_kv"),
        ("lfm2", {"metadata": {"lfm2.attention.head_count_kv": 2}}, r"blk\.0\.shortconv"),
        ("lfm2", {"tensors": {"blk.0.shortconv.conv.bias": BIAS}}, r"blk\.0\.shortconv\.conv\.bias"),
        ("lfm2", {"without": ("token_embd_norm.weight",)}, r"model\.embedding_norm\.weight"),
    ],
    ids=str,
)
def test_what_is_not_converted_refuses_the_file_by_name(tmp_path, kind, extra, name):
    with pytest.raises(XatlasError, match=name) as caught:
        load(write_gguf(tmp_path / "odd.gguf", build(kind), **extra))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "odd.gguf") in str(caught.value)


def test_keys_that_say_nothing_refuse_nothing(tmp_path):
    original = build("llama")
    neutral = {
        "llama.expert_count": 0,
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.finetuned": True,
        "llama.attention.causal": True,
        "general.quantization_version": 2,
        "general.tags": ["text"],
        "quantize.imatrix.entries_count": 7,
        "tokenizer.ggml.eot_token_id": 257,
        "tokenizer.ggml.add_sep_token": False,
    }
    assert kl(original, load(write_gguf(tmp_path / "tiny.gguf", original, metadata=neutral)).model) <= 1e-5


def test_half_precision_and_quantised_tensors_are_unpacked(tmp_path):
    import numpy as np
    from gguf.quants import quantize

    path = write_gguf(tmp_path / "tiny.gguf", build("qwen2"))
    reader = format_.GGUFReader(path)
    writer = format_.GGUFWriter(tmp_path / "small.gguf", "qwen2")
    for key, found in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            sub = found.types[1] if len(found.types) > 1 else None
            writer.add_key_value(key, found.contents(), found.types[0], sub_type=sub)
    expected = {}
    kinds = [format_.GGMLQuantizationType.Q8_0, format_.GGMLQuantizationType.F16, format_.GGMLQuantizationType.BF16]
    for index, tensor in enumerate(reader.tensors):
        data = np.array(tensor.data)
        kind = kinds[index % 3] if data.ndim == 2 and data.shape[1] % 32 == 0 else format_.GGMLQuantizationType.F32
        stored = quantize(data, kind)
        writer.add_tensor(tensor.name, stored, raw_dtype=kind)
        expected[tensor.name] = torch.from_numpy(np.array(format_.dequantize(stored, kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    state = load(tmp_path / "small.gguf").model.state_dict()
    assert torch.equal(state["model.embed_tokens.weight"], expected["token_embd.weight"])
    for layer in range(3):
        assert torch.equal(state[f"model.layers.{layer}.mlp.up_proj.weight"], expected[f"blk.{layer}.ffn_up.weight"])
        assert torch.equal(
            state[f"model.layers.{layer}.self_attn.q_proj.weight"], expected[f"blk.{layer}.attn_q.weight"]
        )


TEXTS = [
    "In 1969,  12345 naïve 数字 １２ don't DON'T we'LL\n\n  x = 'a'\t\n   end ",
    "<begin>a<end> b <begin>",
    "  two spaces first; hello hello",
    "",
]


def byte_words(pre: str, merges: list[str], **more: Any):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *("".join(merge.split(" ")) for merge in merges), "Ġ1", "hello", "naÃ¯ve"]

    def write(writer: format_.GGUFWriter, size: int) -> None:
        tokens = [*words, "<begin>", "<end>"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([TOKEN_KIND.NORMAL] * len(words) + [TOKEN_KIND.CONTROL, TOKEN_KIND.USER_DEFINED])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(len(words))
        writer.add_eos_token_id(len(words) + 1)
        writer.add_chat_template("{{ messages[0].content }}")

    return write, {word: index for index, word in enumerate(words)}


@pytest.mark.parametrize(
    ("pre", "split", "whole", "begins"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False), False, False),
        (
            "smollm",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            False,
            False,
        ),
        ("llama-bpe", r"\p{N}{1,3}", True, True),
        ("lfm2", r"\p{N}{1,3}", True, True),
        ("qwen2", r"\p{N}", False, False),
    ],
)
def test_tokens_are_cut_as_the_pre_tokenizer_says(tmp_path, pre, split, whole, begins):
    from tokenizers import Regex

    merges = ["Ġ Ġ", "h e", "l l", "he ll", "1 9", "6 9", "19 69", "e n", "en d", "' t"]
    write, ids = byte_words(pre, merges)
    parts = load(write_gguf(tmp_path / "tiny.gguf", build("llama", vocab_size=300), write))
    # the tokenizer.json that such a model comes with
    raw = Tokenizer(models.BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in merges], ignore_merges=whole))
    if isinstance(split, str):
        pattern = (
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{split}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    raw.pre_tokenizer = split
    raw.add_special_tokens(["<begin>"])
    raw.add_tokens(["<end>"])
    for text in TEXTS:
        expected = [len(ids)] * begins + raw.encode(text).ids
        assert parts.tokenizer(text)["input_ids"] == expected, text
    assert parts.tokenizer.decode(parts.tokenizer(TEXTS[2], add_special_tokens=False)["input_ids"]) == TEXTS[2]
    assert parts.tokenizer.bos_token == "<begin>"
    assert parts.tokenizer.chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize("spaced", [True, False])
def test_pieces_are_joined_by_score(tmp_path, spaced):
    pieces = ["▁", "▁▁", "he", "ll", "hell", "▁he", "▁hello", "hello", "o", "h", "e", "l", "w", "▁w", "wo"]
    scores = [-5.0, -6.0, -1.0, -2.0, -3.0, -4.0, -8.0, -7.0, -20.0, -21.0, -22.0, -23.0, -24.0, -9.0, -0.5]
    specials = ["<unk>", "<s>", "</s>"]
    raw_bytes = [f"<0x{byte:02X}>" for byte in range(256)]

    def write(writer: format_.GGUFWriter, size: int) -> None:
        tokens = [*specials, *raw_bytes, *pieces]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * 259 + scores)
        writer.add_token_types(
            [TOKEN_KIND.UNKNOWN, TOKEN_KIND.CONTROL, TOKEN_KIND.CONTROL] + [6] * 256 + [1] * len(pieces)
        )
        writer.add_add_space_prefix(spaced)

    parts = load(write_gguf(tmp_path / "tiny.gguf", build("llama", vocab_size=300), write))
    ids = {piece: index for index, piece in enumerate([*specials, *raw_bytes, *pieces])}

    def joined(text: str) -> list[int]:
        """Join the two neighbours whose piece scores best, leftmost first, until none is a piece."""
        known = dict(zip(pieces, scores, strict=True))
        symbols = list((" " * (spaced and bool(text)) + text).replace(" ", "▁"))
        while True:
            pairs = [(-known[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in known]
            if not pairs:
                break
            _, at = min(pairs)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        found = []
        for symbol in symbols:
            found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        return found

    for text in ("hello hello", " hello", "wollo  ho héllo", "数"):
        assert parts.tokenizer(text)["input_ids"] == [1, *joined(text)], text
    assert parts.tokenizer("</s>he")["input_ids"][1] == 2
    assert parts.tokenizer.decode(parts.tokenizer("hello  wo")["input_ids"], skip_special_tokens=True) == "hello  wo"


def test_a_vocabulary_that_cannot_be_rebuilt_is_refused(tmp_path):
    def without_merges(writer: format_.GGUFWriter, size: int) -> None:
        byte_words("gpt-2", [])[0](writer, size)

    def without_scores(writer: format_.GGUFWriter, size: int) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["a", "b", "ab"])

    def twice(writer: format_.GGUFWriter, size: int) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "a"])

    def bytes_alone(writer: format_.GGUFWriter, size: int) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(sorted(pre_tokenizers.ByteLevel.alphabet()))

    said: list[str] = []
    found = loading.resolve(str(write_gguf(tmp_path / "bytes.gguf", build("llama"), bytes_alone)), progress=said.append)
    assert any("names no pre-tokenizer" in line for line in said)
    parts = loading.load(found, device="cpu")
    assert len(parts.tokenizer("naïve")["input_ids"]) == 6, "no merges are needed where every token is a byte"
    for write, words in ((without_merges, "merges"), (without_scores, "scores"), (twice, "holds 'a' twice")):
        with pytest.raises(XatlasError, match=words):
            load(write_gguf(tmp_path / f"{words[:3]}.gguf", build("llama", vocab_size=300), write))


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def test_damaged_files_are_one_line(tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf", build("llama")).read_bytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    odd = {
        "long_name": head + struct.pack("<Q", 10**12) + b"abc",
        "long_text": head + text(b"general.name") + struct.pack("<IQ", 8, 10**12) + b"abc",
        "many_numbers": head + text(b"x") + struct.pack("<IIQ", 9, 4, 10**18),
        "many_texts": head + text(b"x") + struct.pack("<IIQ", 9, 8, 10**12) + bytes(100),
        "nested": head + text(b"x") + struct.pack("<IIQIQ", 9, 9, 1, 9, 1) * 50,
        "many_keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        "many_tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        "unknown_kind": head + text(b"x") + struct.pack("<I", 77),
        "not_text": head + text(b"\xff\xfe") + struct.pack("<IB", 0, 0),
        "version": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "dimensions": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(b"t") + struct.pack("<I", 2**31),
        "alignment": head + text(b"general.alignment") + struct.pack("<II", 4, 0),
    }
    odd |= {f"cut_{size}": whole[:size] for size in (4, 5, 23, 24, 40, 300, 2000, len(whole) // 2, len(whole) - 1)}
    at = whole.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight")
    for name, dims in {"huge": (2**62, 2**62), "empty": (0, 32), "other": (33, 32)}.items():
        odd[name] = whole[: at + 4] + struct.pack("<QQ", *dims) + whole[at + 20 :]
    odd["unknown_type"] = whole[: at + 20] + struct.pack("<I", 999) + whole[at + 24 :]
    odd["another"] = whole[: at + 24] + struct.pack("<Q", 0) + whole[at + 32 :]  # would read as another tensor
    odd["far"] = whole[: at + 24] + struct.pack("<Q", 2**63) + whole[at + 32 :]
    for name, content in odd.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(XatlasError, match="cannot be read as GGUF") as caught:
            load(tmp_path / f"{name}.gguf")
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value)) < 400, name


def test_a_tensor_that_lies_the_other_way_round_is_refused(tmp_path):
    model, name = build("llama"), "blk.0.attn_k.weight"
    turned = {name: model.model.layers[0].self_attn.k_proj.weight.detach().T.contiguous()}
    with pytest.raises(XatlasError, match=rf"{name}.* is \(32, 16\), the model needs \(16, 32\)"):
        load(write_gguf(tmp_path / "turned.gguf", model, tensors=turned, without=(name,)))


@pytest.mark.parametrize("flips", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_flipped_bytes_never_crash(tmp_path, flips):
    from xatlas.loading import gguf

    whole, rng = write_gguf(tmp_path / "whole.gguf", build("lfm2")).read_bytes(), random.Random(0)
    head = whole.index(b"token_embd_norm.weight") + 40
    for _ in range(flips):
        content = bytearray(whole)
        content[rng.randrange(4, head)] ^= 1 << rng.randrange(8)
        (tmp_path / "flipped.gguf").write_bytes(content)
        with contextlib.suppress(XatlasError):
            gguf.convert(tmp_path / "flipped.gguf", hashlib.sha256(content).hexdigest(), lambda line: None)


def test_conversions_by_an_earlier_rule_are_left_alone(tmp_path):
    import shutil

    from xatlas.loading import gguf, model_files

    path = write_gguf(tmp_path / "tiny.gguf", build("llama"))
    digest = model_files.file_sha256(path)
    new = loading.resolve(str(path), progress=lambda line: None).folder
    old = new.with_name(new.name.replace(f"-{gguf._FORMAT}-", "-"))
    assert old != new
    shutil.move(new, old)
    assert not gguf.is_converted(digest)


def test_tensors_may_be_aligned_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))

    def vocabulary(writer, size):
        byte_vocabulary(writer, size)
        writer.add_custom_alignment(256)  # norms of 32 numbers are padded

    path = write_gguf(tmp_path / "tiny.gguf", build_tiny("llama", vocab_size=300), vocabulary)
    assert loading.resolve(str(path), progress=lambda line: None).folder.is_dir()


def test_a_conversion_that_lost_a_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf", build_tiny("llama", vocab_size=300))
    folder = loading.resolve(str(path), progress=lambda line: None).folder
    (folder / "model.safetensors").unlink()
    loading.resolve(str(path), progress=lambda line: None)
    assert (folder / "model.safetensors").is_file()
