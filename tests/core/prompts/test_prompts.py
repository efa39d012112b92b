"""Tokens as METHODS asks: joint tokenisation, the readout position, position classes, buckets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xatlas.errors import XatlasError
from xatlas.prompts.reader import Reader, TokenSuite, buckets
from xatlas.suites import Prompt, Suite

SPACE = "Ġ"  # how byte-level tokenizers write a space
TEMPLATE = (
    "{{ bos_token }}[{% for m in messages %}{{ m.content }}{% endfor %}]{% if add_generation_prompt %}>{% endif %}"
)


def tokenizer(merges=(), *, bos="<s>", eos="</s>", adds_bos=False, adds_eos=False, template=None):
    """Return a byte-level BPE tokenizer with a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *("".join(pair) for pair in merges)]
    raw = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=list(merges)))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos)
    made.chat_template = template
    if adds_bos or adds_eos:
        single = f"{bos} $A" * adds_bos or "$A"
        special = [(bos, made.bos_token_id)] * adds_bos + [(eos, made.eos_token_id)] * adds_eos
        single += f" {eos}" * adds_eos
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return made


def read(text, target=None, foil=None, *, merges=(), **more):
    reader = more.pop("reader", None) or Reader(tokenizer(merges))
    return reader.prompt(Prompt("p", "f", text, target=target, foil=foil, **more)), reader.tokenizer


def words(tokens, found):
    return [tokens.decode([token]) for token in found]


def test_a_target_in_one_token_is_read_out_at_the_end_of_the_text():
    prompt, tok = read("a+b =", " 5", " 7", merges=[(SPACE, "5"), (SPACE, "7")])
    assert words(tok, prompt.target_ids) == [" 5"]
    assert (prompt.readout, prompt.appended) == (len(prompt.ids) - 1, 0)
    assert words(tok, [prompt.answer, prompt.foil_answer]) == [" 5", " 7"]


def test_a_target_of_space_and_digit_is_read_out_where_the_digits_differ():
    """The same prompt as above through another tokenizer: the space is run, the digit is read out."""
    prompt, tok = read("a+b =", " 5", " 7")
    assert words(tok, prompt.target_ids) == [" ", "5"]
    assert (prompt.readout, prompt.appended) == (prompt.n_text, 1)
    assert words(tok, [prompt.answer, prompt.foil_answer]) == ["5", "7"]
    assert words(tok, prompt.ids)[-1] == " "


def test_without_a_foil_the_first_token_that_is_not_whitespace_is_read_out():
    prompt, tok = read("a =", "  5x")
    assert words(tok, [prompt.answer]) == ["5"]
    assert prompt.readout == prompt.n_text + 1
    assert prompt.foil_answer is None


def test_without_a_target_the_text_ends_at_the_readout():
    prompt, _ = read("abc")
    assert (prompt.readout, prompt.n_text, prompt.appended) == (3, 4, 0)
    assert prompt.answer is None


def test_all_of_the_target_but_its_last_token_is_run():
    prompt, tok = read("x", "abcd", "abce")
    assert words(tok, prompt.ids[prompt.n_text :]) == ["a", "b", "c"]
    assert words(tok, [prompt.answer, prompt.foil_answer]) == ["d", "e"]
    assert prompt.readout == len(prompt.ids) - 1


@pytest.mark.parametrize(("target", "foil"), [("ab", "abc"), ("abc", "ab")])
def test_a_target_that_begins_the_foil_is_dropped(target, foil):
    assert "share all tokens" in read("x", target, foil)[0]


def test_a_target_of_whitespace_alone_is_dropped():
    assert read("x", "  ")[0] == "the target is only whitespace"


@pytest.mark.parametrize(("target", "foil", "who"), [("5", "7", "target"), ("7", "5", "foil")])
def test_a_prompt_whose_text_tokens_change_is_dropped(target, foil, who):
    assert read("a =", target, foil, merges=[("=", "5")])[0] == f"the text's tokens change when the {who} follows"


def test_dropped_prompts_are_counted_with_their_reason():
    suite = Suite("s", (Prompt("good", "f", "a", target="b"), Prompt("bad", "f", "a =", target="5")))
    found = Reader(tokenizer([("=", "5")])).suite(suite)
    assert [prompt.prompt.id for prompt in found.prompts] == ["good"]
    assert found.dropped == {"bad": "the text's tokens change when the target follows"}


def test_a_suite_without_a_usable_prompt_is_one_clear_line():
    with pytest.raises(XatlasError, match=r"all 1 are dropped, e\.g\. bad: the text's tokens change"):
        Reader(tokenizer([("=", "5")])).suite([Prompt("bad", "f", "a =", target="5")])


def test_a_prompt_longer_than_the_context_is_dropped():
    reader = Reader(tokenizer(), context=6)
    found = reader.suite(
        [Prompt("p", "f", "abcde"), Prompt("long", "f", "abcdef"), Prompt("more", "f", "ab", "cdefgh")]
    )
    assert [prompt.n_tokens for prompt in found.prompts] == [6]
    assert found.dropped["long"] == "it has 7 tokens, the model's context is 6: shorten it"
    assert "it has 8 tokens" in found.dropped["more"]
    with pytest.raises(XatlasError, match=r"all 1 are dropped, e\.g\. long: it has 7 tokens"):
        reader.suite([Prompt("long", "f", "abcdef")])


@pytest.mark.parametrize("where", ["text", "target", "foil"])
def test_a_prompt_with_a_token_that_the_model_lacks_is_dropped(where):
    """Run, it would end the job in the embedding; read out, in the logits."""
    tok = tokenizer()
    known = len(tok)
    tok.add_tokens(["<extra>"])
    fields = {"text": "Fine", "target": " x", "foil": " y"}
    odd = Prompt("odd", "f", **(fields | {where: fields[where] + "<extra>"}))
    found = Reader(tok, vocabulary=known).suite([odd, Prompt("b", "f", "Fine")])
    assert found.dropped == {"odd": f"the model has {known} tokens, none for '<extra>' ({known})"}


# -- what stands at position 0 ---------------------------------------------------------------------


@pytest.mark.parametrize("adds_bos", [True, False])
def test_always_puts_one_beginning_token_in_front(adds_bos):
    """Whether or not the tokenizer does so by itself, there is exactly one."""
    tok = tokenizer(adds_bos=adds_bos)
    ids = Reader(tok).prompt(Prompt("p", "f", "ab")).ids
    assert ids.count(tok.bos_token_id) == 1
    assert ids[0] == tok.bos_token_id


@pytest.mark.parametrize("adds_bos", [True, False])
def test_native_leaves_the_tokenizer_its_habit(adds_bos):
    tok = tokenizer(adds_bos=adds_bos)
    ids = Reader(tok, bos="native").prompt(Prompt("p", "f", "ab")).ids
    assert list(ids) == tok("ab")["input_ids"]
    assert (tok.bos_token_id in ids) == adds_bos


def test_native_takes_a_closing_token_off_again():
    """A token after the text would stand between the text and its target."""
    tok = tokenizer(adds_bos=True, adds_eos=True)
    prompt = Reader(tok, bos="native").prompt(Prompt("p", "f", "ab", target="c"))
    assert tok.eos_token_id not in prompt.ids
    assert words(tok, prompt.target_ids) == ["c"]


def test_without_a_beginning_token_the_models_end_token_stands_first():
    """So that position 0 is the same kind of thing in every model."""
    assert Reader(tokenizer(bos=None), end_token=7).prompt(Prompt("p", "f", "ab")).ids[0] == 7
    tok = tokenizer(bos=None)
    assert Reader(tok).prompt(Prompt("p", "f", "ab")).ids[0] == tok.eos_token_id
    with pytest.raises(XatlasError, match="neither a beginning nor an end token"):
        Reader(tokenizer(bos=None, eos=None))


def special(*names, template=None, eos=None):
    """Return a tokenizer without a beginning token, and its ids of ``names``."""
    tok = tokenizer(bos=None, eos=eos, template=template)
    tok.add_special_tokens({"additional_special_tokens": list(names)})
    return tok, [tok.convert_tokens_to_ids(name) for name in names]


def test_an_end_of_turn_never_stands_first():
    """An instruct model gets the token that its base model gets."""
    tok, (document, turn) = special("<|endoftext|>", "<|im_end|>", eos="<|im_end|>")
    assert Reader(tok, end_token=[turn]).first_token == document  # by its name
    assert Reader(tok, end_token=[turn, document]).first_token == document
    assert Reader(tok, begin_token=document, end_token=turn).first_token == document
    tok, (turn, document) = special("<|over|>", "<|doc|>", template="{{ messages[0].content }}<|over|>", eos="<|over|>")
    assert Reader(tok, end_token=[turn, document]).first_token == document  # by the template
    with pytest.raises(XatlasError, match="neither a beginning nor an end token of documents"):
        Reader(tok, end_token=turn)


def test_a_token_that_ends_documents_and_turns_stands_first():
    tok, (end,) = special("</s>", template="{{ messages[0].content }}</s>", eos="</s>")
    assert Reader(tok).first_token == end


def test_no_token_beyond_the_vocabulary_stands_first():
    tok = tokenizer(bos=None)
    for beyond in (len(tok), 10**6, -1):
        assert Reader(tok, begin_token=beyond, end_token=beyond).first_token == tok.eos_token_id
    tok.add_special_tokens({"bos_token": "<new>"})
    assert Reader(tok, vocabulary=len(tok) - 1).first_token == tok.eos_token_id


def test_a_chat_template_wraps_the_text_and_begins_it_once():
    tok = tokenizer(template=TEMPLATE)
    for bos in ("always", "native"):
        reader = Reader(tok, bos=bos, chat_template=True)
        prompt = reader.prompt(Prompt("p", "f", "ab", target="c", subject=(1, 2)))
        assert tok.decode(prompt.ids) == "<s>[ab]>"
        assert prompt.ids.count(tok.bos_token_id) == 1
        assert words(tok, [prompt.ids[p] for p in prompt.subject]) == ["b"]
        assert words(tok, [prompt.answer]) == ["c"]


def test_a_chat_template_that_is_not_there_is_refused():
    with pytest.raises(XatlasError, match="has no chat template"):
        Reader(tokenizer(), chat_template=True)


def test_the_hash_of_the_tokens_sees_tokens_positions_and_ids_and_nothing_else():
    found = Reader(tokenizer()).suite([Prompt("p", "f", "ab", " c", " d", subject=(0, 1))])
    (prompt,) = found.prompts
    changes = [
        {"ids": (*prompt.ids[:-1], 3)},
        {"readout": 1},
        {"answer": 3},
        {"subject": (2,)},
        {"prompt": replace(prompt.prompt, id="q")},
    ]
    others = {TokenSuite((replace(prompt, **change),)).hash for change in changes}
    assert len(others | {found.hash}) == len(changes) + 1
    assert TokenSuite((replace(prompt, prompt=replace(prompt.prompt, family="g")),), {"x": "why"}).hash == found.hash


# -- classes of positions, buckets ------------------------------------------------------------------


def test_the_subject_is_every_token_that_overlaps_the_span():
    merges = [("b", "c"), ("d", "e")]
    prompt, tok = read("abcdef", "x", subject=(2, 4), merges=merges)
    assert words(tok, [prompt.ids[p] for p in prompt.subject]) == ["bc", "de"]
    prompt, tok = read("abcdef", "x", subject=(1, 3), merges=merges)
    assert words(tok, [prompt.ids[p] for p in prompt.subject]) == ["bc"]


def test_the_token_at_a_character_has_seen_the_whole_of_it():
    """In bytes one by one, a character of several is whole at the last of them."""
    text, reader = "a é 東", Reader(tokenizer())
    ends = range(1, len(text) + 1)
    assert reader.tokens_at(Prompt("p", "f", text), ends) == [len(text[:end].encode()) for end in ends]


def test_position_classes_share_no_token_and_cover_the_text():
    prompt, _ = read("abcdef", "yz", "yw", subject=(1, 6))
    taken = [prompt.positions(name) for name in ("first", "subject", "last", "other")]
    flat = [p for positions in taken for p in positions]
    assert len(flat) == len(set(flat))
    assert set(flat) == {*range(prompt.n_text), prompt.readout}
    ends, _ = read("abcdef", subject=(4, 6))
    assert ends.readout in ends.subject  # the readout belongs to `last` alone
    assert ends.readout not in ends.positions("subject")
    with pytest.raises(XatlasError, match="unknown position class 'middle'"):
        prompt.positions("middle")


def test_a_bucket_holds_one_length_and_at_most_so_many():
    lengths = [5, 3, 5, 5, 3, 8]
    groups = buckets(lengths, {5: 2, 3: 4, 8: 0}.__getitem__)
    assert [group.tolist() for group in groups] == [[1, 4], [0, 2], [3], [5]]
    assert sorted(np.concatenate(buckets(lengths, lambda _: 1)).tolist()) == list(range(6))


def test_a_closing_token_that_the_text_itself_ends_in_stays():
    tok = tokenizer(adds_bos=True)
    assert Reader(tok, bos="native").prompt(Prompt("p", "f", "ab</s>")).ids[-1] == tok.eos_token_id
