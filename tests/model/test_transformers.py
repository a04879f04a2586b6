"""What transformers makes of a saved model: the same logits, the same ids, and the ends of answers."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pylm.conversation import open_speaker
from pylm.data.chat import CHATML, END, END_OF_TEXT, PYLM, SPECIAL_TOKENS, TEMPLATES, ChatTemplate, Message
from pylm.errors import InputError
from pylm.model.config import ModelConfig
from pylm.model.hf import load_model, save_model
from pylm.model.transformer import Transformer
from pylm.text import Tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

# Both compute in float32, in another order; logits are of size 1.
LOGITS = {"rtol": 1e-4, "atol": 1e-4}
SHAPE = {"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 64}
ARCHITECTURES: dict[str, tuple[dict[str, object], str]] = {
    "pre": ({}, "Qwen3ForCausalLM"),
    "without norms of heads": ({"qk_norm": False, "rope_theta": 1e4}, "LlamaForCausalLM"),
    "reordered": ({"norm": "reordered"}, "Exaone4ForCausalLM"),
    "tied": ({"tie_embeddings": True}, "Qwen3ForCausalLM"),
    "normed embeddings": ({"embedding_norm": True}, "Qwen3ForCausalLM"),
    "normed and tied": ({"embedding_norm": True, "tie_embeddings": True}, "Qwen3ForCausalLM"),
    "wide heads": ({"head_dim": 12, "hidden_dim": 40, "norm_eps": 1e-3}, "Qwen3ForCausalLM"),
}
TEXTS = [
    "Hello world", "", " ", "\n", "\n\n  two\n", "  leading and trailing  ", "l'été, naïve café",
    "日本語のテキスト", "👩‍👩‍👧‍👦 🇫🇷", "e\u0301 and \u00e9", "\u200b\ufeff", "a\r\nb\tc",
    "{{ messages }} {% raw %}", "'quoted' \"\\n\"", "<|end", "|> <| user |>",
    "<|END|>", "100,000.25 == 1e5", "\x00\x01", "x" * 300,
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokens = (*SPECIAL_TOKENS, "<|im_start|>", "<|im_end|>")
    return Tokenizer.train(TEXTS * 3, vocab_size=400, pattern="qwen2", special_tokens=tokens)


def make(tokenizer: Tokenizer, **options: object) -> Transformer:
    model = Transformer(ModelConfig.model_validate({"vocab_size": tokenizer.vocab_size, **SHAPE, **options}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.2 * noise)
    return model.eval()


def logits_of(model: Transformer, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids_BT) @ model.output_weight.T


def save(folder: Path, model: Transformer, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> Any:
    """Save a model and read its tokenizer as transformers does."""
    save_model(model, folder, tokenizer, template=template)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_the_same(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    options, class_name = ARCHITECTURES[name]
    model = make(tokenizer, **options)
    save_model(model, tmp_path / "model", tokenizer)
    theirs, notes = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert type(theirs).__name__ == class_name
    assert not any(notes.values()), notes
    assert theirs.dtype == torch.float32
    ids_BT = torch.randint(tokenizer.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids_BT).logits, logits_of(model, ids_BT), **LOGITS)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("is_trained", [False, True])
def test_what_transformers_saves_is_read(
    tmp_path: Path, tokenizer: Tokenizer, name: str, is_trained: bool
) -> None:
    """Also after training there, where a table that was normed need not be normed any more."""
    save_model(make(tokenizer, **ARCHITECTURES[name][0]), tmp_path / "model", tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    if is_trained:
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.mul_(1.5)
    for folder in (tmp_path / "model", tmp_path / "elsewhere"):  # over what was there, and without it
        theirs.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(folder)
        ours, _ = load_model(folder)
        ids_BT = torch.arange(40).reshape(2, 20)
        with torch.no_grad():
            torch.testing.assert_close(logits_of(ours, ids_BT), theirs(ids_BT).logits, **LOGITS)


def widen(theirs: Any, _: Any) -> None:
    theirs.resize_token_embeddings(512)


def add_tokens(theirs: Any, reader: Any) -> None:
    reader.add_tokens(["<think>", "</think>"])
    theirs.resize_token_embeddings(len(reader))


def change_config(**values: object) -> Any:
    return lambda theirs, _: [setattr(theirs.config, name, value) for name, value in values.items()]


def untie(theirs: Any, _: Any) -> None:
    theirs.config.tie_word_embeddings = False
    theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach() * 2)


def tie(theirs: Any, _: Any) -> None:
    theirs.config.tie_word_embeddings = True
    theirs.tie_weights()


EDITS = {
    "longer context": change_config(max_position_embeddings=128),
    "larger epsilon": change_config(rms_norm_eps=0.5),
    "slower rotation": change_config(rope_parameters={"rope_type": "default", "rope_theta": 7.0}),
    "rows more than tokens": widen,
    "more tokens": add_tokens,
    "tied": tie,
    "untied": untie,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("name", ["reordered", "tied", "normed embeddings", "normed and tied"])
def test_what_transformers_has_changed_is_followed(
    tmp_path: Path, tokenizer: Tokenizer, name: str, edit: Any
) -> None:
    """Beside the raw table of before, which must not come back where it is not that of these weights."""
    folder = tmp_path / "model"
    save_model(make(tokenizer, **ARCHITECTURES[name][0]), folder, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    edit(theirs, reader)
    theirs.save_pretrained(folder)
    reader.save_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ours, ours_tokenizer = load_model(folder)
    assert ours.config.vocab_size == theirs.config.vocab_size
    assert ours.config.max_seq_len == theirs.config.max_position_embeddings
    assert ours_tokenizer.vocab_size == len(reader)
    ids_BT = torch.arange(tokenizer.vocab_size - 40, tokenizer.vocab_size).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours, ids_BT), theirs(ids_BT).logits, **LOGITS)
    save_model(ours, tmp_path / "again", ours_tokenizer)
    assert load_model(tmp_path / "again")[0].config == ours.config


def test_a_small_step_is_not_undone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Rows that have moved little are not made from the raw table again."""
    save_model(make(tokenizer, embedding_norm=True), tmp_path / "model", tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        theirs.get_input_embeddings().weight.mul_(1 + 2e-5)
    theirs.save_pretrained(tmp_path / "model")
    ours, _ = load_model(tmp_path / "model")
    assert not ours.config.embedding_norm
    assert torch.equal(ours.embedding.weight, theirs.get_input_embeddings().weight)


def test_a_model_that_transformers_lacks_is_said_to_be_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(make(tokenizer, norm="reordered", qk_norm=False), tmp_path / "model", tokenizer)
    with pytest.raises(ValueError, match="model_type"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_an_embedding_that_does_not_fit_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(make(tokenizer, embedding_norm=True), tmp_path / "model", tokenizer)
    path = tmp_path / "model" / "embedding.st"
    save_file({"other": load_file(path)["embedding.weight"]}, path)
    with pytest.raises(InputError, match=r"damaged model folder \('embedding\.weight'\)"):
        load_model(tmp_path / "model")


CONVERSATIONS: dict[str, list[Message]] = {
    "one message": [{"role": "user", "content": "Hi"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": ""},
    ],
    "the model first": [{"role": "assistant", "content": "Hello"}],
    "awkward": [{"role": "user", "content": text} for text in TEXTS],
    "awkward answers": [
        message
        for text in TEXTS
        if not text.startswith("\n")  # in ChatML these share a token with their header
        for message in ({"role": "user", "content": text}, {"role": "assistant", "content": text})
    ],
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_conversations_have_the_same_ids(
    tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate, name: str, add_generation_prompt: bool
) -> None:
    theirs = save(tmp_path / "model", make(tokenizer), tokenizer, template)
    messages = CONVERSATIONS[name]
    if not add_generation_prompt and all(m["role"] != "assistant" for m in messages):
        messages = [*messages, {"role": "assistant", "content": "Yes"}]
    options = {"add_generation_prompt": add_generation_prompt}
    expected = template.render(messages, tokenizer, add_generation_prompt=add_generation_prompt).ids
    assert theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **options) == expected
    text = theirs.apply_chat_template(messages, tokenize=False, **options)
    assert theirs(text, add_special_tokens=False).input_ids == expected


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
def test_what_would_have_other_ids_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    theirs = save(tmp_path / "model", make(tokenizer), tokenizer, template)
    for marker in {END_OF_TEXT, template.end, *(header for header, _ in template.headers.values())}:
        for role in ("user", "assistant"):
            with pytest.raises(Exception, match=r"a message holds the special token <\|"):
                theirs.apply_chat_template([{"role": role, "content": f"x{marker}y"}], tokenize=False)
    for message in ({"content": None}, {}, {"content": [{"type": "text", "text": "x"}]}):
        with pytest.raises(Exception, match="the content of a message must be a text"):
            theirs.apply_chat_template([{"role": "assistant", **message}], tokenize=False)
    with pytest.raises(Exception, match="unknown role judge"):
        theirs.apply_chat_template([{"role": "judge", "content": "x"}], tokenize=False)


def test_a_model_that_knows_no_conversations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    theirs = save(tmp_path / "model", make(tokenizer), tokenizer)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.unk_token) == (
        END_OF_TEXT, END_OF_TEXT, END_OF_TEXT, None,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"chat_template is not set"):
        theirs.apply_chat_template(CONVERSATIONS["turns"])
    end_of_text = tokenizer.special_tokens[END_OF_TEXT]
    config = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (end_of_text,) * 3
    # A document follows the end of another.
    for text in TEXTS:
        assert theirs(text).input_ids == [end_of_text, *tokenizer.encode_ordinary(text)]
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode_ordinary(text)
        assert theirs.decode(tokenizer.encode_ordinary(text)) == text


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
def test_roles_of_a_tuned_model(tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    theirs = save(tmp_path / "model", make(tokenizer), tokenizer, template)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (END_OF_TEXT, template.end, END_OF_TEXT)
    assert theirs.chat_template == template.jinja
    config = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    assert config.eos_token_id == [tokenizer.special_tokens[x] for x in (template.end, END_OF_TEXT)]
    assert set(config.eos_token_id) == set(template.stop_ids(tokenizer))
    assert config.pad_token_id == tokenizer.special_tokens[END_OF_TEXT]
    # Training there must reach the row of <|endoftext|>, which fills up rows but is more than that.
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.get_input_embeddings().padding_idx is None
    _, ours = load_model(tmp_path / "model")
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id,
    )  # fmt: skip
    assert ours.chat_template == template.jinja
    assert ours.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
def test_a_tuned_model_is_spoken_to_in_its_own_layout(
    tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    theirs = save(tmp_path, make(tokenizer), tokenizer, template)
    assert open_speaker(tmp_path).template is template
    assert open_speaker(tmp_path, template="chatml").template is CHATML
    theirs.save_pretrained(tmp_path)
    assert open_speaker(tmp_path).template is template
    theirs.chat_template = "{{ messages[0].content }}"
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="chat template is none of pylm, chatml; name the one"):
        open_speaker(tmp_path)
    assert open_speaker(tmp_path, template="pylm").template is PYLM
    save(tmp_path, make(tokenizer), tokenizer)
    assert open_speaker(tmp_path).template is PYLM


def test_roles_do_not_outlive_another_save(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A model that is tuned with another layout has that one, and only that."""
    model = make(tokenizer)
    save_model(model, tmp_path / "first", tokenizer, template=PYLM)
    again = save(tmp_path / "second", model, load_model(tmp_path / "first")[1], CHATML)
    assert again.chat_template == CHATML.jinja
    assert again.eos_token == "<|im_end|>"
    assert again("x").input_ids[:-1] == [tokenizer.special_tokens[END_OF_TEXT]]


def test_without_end_of_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a"], vocab_size=258, special_tokens=["<|im_start|>", "<|im_end|>"])
    theirs = save(tmp_path / "model", make(tokenizer), tokenizer, CHATML)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (None, "<|im_end|>", "<|im_end|>")
    document = json.loads((tmp_path / "model" / "generation_config.json").read_text(encoding="utf-8"))
    end = tokenizer.special_tokens["<|im_end|>"]
    assert document == {"bos_token_id": None, "eos_token_id": [end], "pad_token_id": end}
    with pytest.raises(InputError, match="chat template 'pylm' needs the special tokens"):
        save_model(make(tokenizer), tmp_path / "other", tokenizer, template=PYLM)
    assert not (tmp_path / "other").exists()
    plain = save(tmp_path / "plain", make(tokenizer), tokenizer)
    assert (plain.bos_token, plain.eos_token, plain.pad_token) == (None, None, None)


def test_generation_stops_at_the_end_of_a_turn(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A model whose next token depends on the last one alone, so that what it must say is known."""
    model = make(tokenizer, dim=512, num_heads=4, tie_embeddings=False, num_layers=1)
    special = tokenizer.special_tokens
    chain = [special["<|assistant|>"], *tokenizer.encode_ordinary("Hello world"), special[END]]
    chain += tokenizer.encode_ordinary(" and more")
    assert len(set(chain)) == len(chain)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight.zero_()
            block.ffn.down.weight.zero_()
        model.norm.weight.fill_(1.0)
        table, _ = torch.linalg.qr(torch.randn(512, 512, generator=torch.Generator().manual_seed(0)))
        model.embedding.weight.copy_(table[: tokenizer.vocab_size])  # orthogonal rows
        model.output.weight.zero_()
        for token, following in pairwise(chain):
            model.output.weight[following] = model.embedding.weight[token]
    save_model(model, tmp_path / "model", tokenizer, template=PYLM)
    expected = chain[1 : chain.index(special[END]) + 1]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", padding_side="left")
    prompts = [CONVERSATIONS["one message"], CONVERSATIONS["system"]]
    batch = reader.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    made = theirs.generate(**batch, max_new_tokens=20)
    assert made[:, batch["input_ids"].shape[1] :].tolist() == [expected] * 2
    talk = transformers.pipeline("text-generation", model=str(tmp_path / "model"), device="cpu")
    answer = talk(CONVERSATIONS["one message"], max_new_tokens=20)[0]["generated_text"][-1]
    assert answer == {"role": "assistant", "content": "Hello world"}
