"""A converted model begins and ends texts, and chats, as transformers does with the model it came from."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizer_files import adding, byte_level

from dba_cli.main import main
from dba_core.data.special_tokens import SPECIAL_FILE
from dba_core.errors import ConfigError
from dba_core.runs.load import load_run
from dba_plugins.checkpoints.fields import Fields
from dba_plugins.checkpoints.gguf.tokenizer import tokenizer_config, tokenizer_json

pytestmark = [pytest.mark.torch, pytest.mark.needs("tokenizers", "transformers")]

PROMPT, CONTEXT = "the cat", 32
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
EXACT = "ksem=fp32,kgeo=fp32,v=fp32"


@attrs.frozen
class Source:
    """A model of transformers in a folder, and what `dba convert --keep` made of it. stops: the 5th new token
    of the greedy continuation of PROMPT.
    """

    folder: Path
    out: Path
    model: Any
    tokenizer: Any
    stops: int


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    place = tmp_path_factory.mktemp("special")
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=258, eos_token_id=259,
        pad_token_id=259, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=adding(byte_level(), "<s> $A"), bos_token="<s>", eos_token="</s>",
        chat_template=TEMPLATE,
    )  # fmt: skip
    stops = continued(model, tokenizer(PROMPT).input_ids, eos=None)[4]
    model.generation_config.eos_token_id = [259, stops]
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "text.txt").write_text("the other day the cat sat there " * 6, encoding="utf-8")
    done = dba(
        *("convert", place / "model", "--out", place / "out", "--keep", "--kv-policy", EXACT),
        *("--eval", place / "text.txt", "--context", CONTEXT, "--json"),
    )
    assert done["variants"]
    return Source(place / "model", place / "out", model, tokenizer, stops)


def dba(*args: object, code: int = 0) -> Any:
    """The JSON document that a command prints, or what it says on stderr where it is to fail."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main([str(arg) for arg in args])
    assert found == code, err.getvalue()
    return err.getvalue() if code else json.loads(out.getvalue())


def sample(source: Source, *args: object, out: Path | None = None) -> Any:
    settings = ("--temperature", "0", "--max-new-tokens", "20", "--json")
    (found,) = dba("sample", out or source.out, *args, *settings)["samples"]
    return found


def continued(model: Any, ids: list[int], *, eos: Any) -> list[int]:
    """The new tokens of greedy `generate`, 20 at most. It takes the model's own settings for what is None."""
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, eos
    tokens = torch.tensor([ids])
    made = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20, do_sample=False, pad_token_id=259
    )
    model.generation_config.eos_token_id = before
    return made[0, len(ids) :].tolist()


def nll(model: Any, ids: list[int]) -> float:
    """The mean loss of every token but the first, in windows of CONTEXT."""
    tokens, losses = torch.tensor(ids), []
    for start in range(0, len(ids) - 1, CONTEXT):
        window = tokens[start : start + CONTEXT + 1]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    return float(torch.cat(losses).mean())


def test_generation_begins_and_ends_as_transformers_does(source: Source) -> None:
    ids = source.tokenizer(PROMPT).input_ids
    theirs = continued(source.model, ids, eos=[259, source.stops])
    found = sample(source, "--prompt", PROMPT)
    assert found["prompt_tokens"] == ids
    assert ids[0] == 258
    assert theirs[-1] == source.stops
    assert len(theirs) == 5
    assert found["tokens"] == theirs[:-1]
    assert sample(source, "--prompt", PROMPT, "--no-eos")["tokens"] == continued(source.model, ids, eos=None)
    assert len(sample(source, "--prompt", PROMPT, "--no-eos")["tokens"]) == 20


def test_without_bos(source: Source) -> None:
    ids = source.tokenizer(PROMPT, add_special_tokens=False).input_ids
    found = sample(source, "--prompt", PROMPT, "--no-bos", "--no-eos")
    assert found["prompt_tokens"] == ids
    assert found["tokens"] == continued(source.model, ids, eos=None)


@pytest.mark.filterwarnings("ignore::dba_core.errors.LongPromptWarning")
def test_a_chat_is_that_of_transformers(source: Source) -> None:
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": PROMPT}]
    ids = source.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    found = sample(source, "--chat", "--system", "S", "--prompt", PROMPT, "--no-eos")
    assert found["prompt_tokens"] == ids
    assert ids.count(258) == 1
    assert found["tokens"] == continued(source.model, ids, eos=None)
    said = dba("sample", source.out, "--chat", "--bos", "--prompt", "x", code=2)
    assert "in a chat the model's template writes the special tokens" in said
    said = dba("sample", source.out, "--system", "S", "--prompt", "x", code=2)
    assert "ask for the chat too (--chat)" in said


@pytest.mark.filterwarnings("ignore::dba_core.errors.LongPromptWarning")
def test_from_python_it_is_the_same(source: Source) -> None:
    run = load_run(source.out)
    greedy = {"temperature": 0, "max_new_tokens": 20}
    assert run.generate(PROMPT, **greedy) == sample(source, "--prompt", PROMPT)["text"]
    asked = run.generate(PROMPT, chat=True, system="S", eos=False, **greedy)
    assert asked == sample(source, "--chat", "--system", "S", "--prompt", PROMPT, "--no-eos")["text"]
    assert run.generate([PROMPT], bos=False, **greedy) == [
        sample(source, "--prompt", PROMPT, "--no-bos")["text"]
    ]
    with pytest.raises(ConfigError, match=r"unknown setting 'chatt'.*Allowed: bos, chat, eos,"):
        run.generate(PROMPT, chatt=True)


@pytest.mark.parametrize("flags", [(), ("--no-bos",), ("--eos",)], ids=" ".join)
def test_the_loss_is_of_the_text_between_its_special_tokens(flags: tuple[str, ...], source: Source) -> None:
    text = (source.out.parent / "text.txt").read_text()
    ids = source.tokenizer(text, add_special_tokens="--no-bos" not in flags).input_ids
    ids += [259] if "--eos" in flags else []
    found = dba("eval", source.out, "--data", source.out.parent / "text.txt", *flags, "--json")["held_out"]
    assert found["tokens"] == len(ids) - 1
    assert found["loss"] == pytest.approx(nll(source.model, ids), rel=1e-4)
    n_bytes = len(text.encode()) - (len("the") if "--no-bos" in flags else 0)
    bits = found["loss"] * found["tokens"] / torch.log(torch.tensor(2.0)).item()
    assert found["bits_per_byte"] == pytest.approx(bits / n_bytes, rel=1e-5)


def test_the_conversion_measured_the_text_from_its_bos_on(source: Source) -> None:
    report = json.loads((source.out / "conversion.json").read_text())
    ids = source.tokenizer((source.out.parent / "text.txt").read_text()).input_ids
    loss = report["variants"][0]["losses"]["text.txt"]
    assert loss["tokens"] == len(ids) - 1
    assert loss["nll"] == pytest.approx(nll(source.model, ids), rel=1e-4)


def test_the_folder_tells_it_to_whoever_reads_it(source: Source, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(source.out, moved)
    document = json.loads((moved / SPECIAL_FILE).read_text())
    assert (document["bos_token"], document["bos_token_id"]) == ("<s>", 258)
    assert document["eos_token_id"] == [259, source.stops]
    assert document["chat_template"] == TEMPLATE
    special = load_run(moved).tokenizer.special
    assert (special.bos, special.eos, special.add_bos, special.add_eos) == (
        258,
        (259, source.stops),
        True,
        False,
    )
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(moved)
    assert theirs(PROMPT).input_ids == source.tokenizer(PROMPT).input_ids
    assert theirs.eos_token == "</s>"


def test_convert_records_what_was_asked_for(source: Source, tmp_path: Path) -> None:
    text = ("--eval", source.out.parent / "text.txt", "--context", CONTEXT, "--json")
    dba("convert", source.folder, "--out", tmp_path / "o", "--keep", "--kv-policy", EXACT, "--no-bos", *text)
    assert load_run(tmp_path / "o").tokenizer.special.add_bos is False
    ids = source.tokenizer(PROMPT, add_special_tokens=False).input_ids
    assert sample(source, "--prompt", PROMPT, out=tmp_path / "o")["prompt_tokens"] == ids


@pytest.mark.parametrize(
    ("file", "content", "code", "hint"),
    [
        ("tokenizer_config.json", "version https://git-lfs.github.com/spec/v1\n", 3, "git lfs pull"),
        ("tokenizer_config.json", "{", 3, "is not valid JSON"),
        ("generation_config.json", '{"eos_token_id": 260}', 3, "special token 260 is outside"),
        ("generation_config.json", '{"eos_token_id": "x"}', 3, "eos_token_id is 'x'"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 1099511627776}}}', 3, "number 1099511627776"),
    ],
)
def test_damaged_files_are_said(
    file: str, content: str, code: int, hint: str, source: Source, tmp_path: Path
) -> None:
    shutil.copytree(source.folder, tmp_path / "m")
    (tmp_path / "m" / file).write_text(content)
    text = ("--eval", source.out.parent / "text.txt", "--context", CONTEXT)
    assert hint in dba("convert", tmp_path / "m", "--out", tmp_path / "o", "--keep", *text, code=code)
    assert not (tmp_path / "o").exists()


def test_a_tokenizer_of_another_model_is_refused(source: Source, tmp_path: Path) -> None:
    shutil.copytree(source.out, tmp_path / "o")
    other = byte_level()
    other.add_tokens(["cat"])
    other.save(str(tmp_path / "o" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("the cat sat there " * 20)
    for command in (
        ("eval", tmp_path / "o", "--data", tmp_path / "text.txt"),
        ("sample", tmp_path / "o", "--prompt", "the cat"),
    ):
        assert "token 260" in dba(*command, code=3)


GGUF = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["a", "b", "<s>", "</s>", "<eot>"],
    "tokenizer.ggml.token_type": np.array([1, 1, 3, 3, 3]),
    "tokenizer.ggml.merges": [],
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.ggml.eot_token_id": 4,
    "tokenizer.ggml.padding_token_id": (1 << 32) - 1,
    "tokenizer.chat_template": TEMPLATE,
}


def gguf(**changes: object) -> Fields:
    return Fields({**GGUF, **changes}, where="m.gguf")


def test_metadata_of_gguf() -> None:
    assert tokenizer_config(gguf()) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "bos_token_id": 2,
        "eos_token_id": [3, 4],
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": TEMPLATE,
    }
    assert tokenizer_config(Fields({}, where="m.gguf")) == {}
    assert tokenizer_config(gguf(**{"tokenizer.ggml.pre": "smollm"}))["add_bos_token"] is False


@pytest.mark.parametrize(("bos", "eos", "ids"), [(1, 1, [2, 0, 1, 3]), (1, 0, [2, 0, 1]), (0, 0, [0, 1])])
def test_the_post_processor_adds_what_gguf_says(bos: int, eos: int, ids: list[int]) -> None:
    flags = {"tokenizer.ggml.add_bos_token": bool(bos), "tokenizer.ggml.add_eos_token": bool(eos)}
    text = tokenizer_json(gguf(**flags))
    assert text is not None
    made = tokenizers.Tokenizer.from_str(text)
    assert made.encode("ab").ids == ids
