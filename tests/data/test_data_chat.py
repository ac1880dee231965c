"""Chat templates render as `transformers` renders them, and say what is wrong with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import attrs
import pytest
from tokenizer_files import adding, byte_level

from dba_core.data.chat import chat_of, encode_chat, render_chat
from dba_core.data.special_tokens import SpecialTokens
from dba_core.data.tokenizers import Tokenizer, load_tokenizer, with_special
from dba_core.errors import DataError

pytestmark = pytest.mark.needs("tokenizers")

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BLOCKS = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{% for message in messages %}
    {% if loop.index0 > 8 %}{% break %}{% endif %}
    [{{ message.role }}] {{ message | tojson }} {{ {'é': '<'} | tojson(indent=2) }}
    {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{% endfor %}
{{ strftime_now('%Y') | length }} {{ tools is none }} {{ system | default('nothing') }}
"""
CHATS = [
    chat_of("Hello <b>é</b>\n"),
    chat_of("Hello", "Be short. "),
    [*chat_of("Hello", "S"), {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "</s>?"}],
]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def plain(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "tokenizer.json"
    adding(byte_level(), "<s> $A").save(str(path))
    return load_tokenizer(str(path))


def chatting(tokenizer: Tokenizer, template: str) -> Tokenizer:
    special = SpecialTokens(bos=258, eos=(259,), add_bos=True, names=NAMES, chat_template=template)
    return with_special(tokenizer, special)


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize("template", [CHATML, BLOCKS], ids=["chatml", "blocks"])
def test_text_and_tokens_are_those_of_transformers(
    template: str, generation_prompt: bool, plain: Tokenizer
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=adding(byte_level(), "<s> $A"), **NAMES, chat_template=template
    )
    ours = chatting(plain, template)
    for chat in CHATS:
        kwargs: dict[str, Any] = {"add_generation_prompt": generation_prompt}
        assert render_chat(ours, chat, **kwargs) == theirs.apply_chat_template(chat, tokenize=False, **kwargs)
        ids = theirs.apply_chat_template(chat, tokenize=True, return_dict=False, **kwargs)
        assert encode_chat(ours, chat, **kwargs).tolist() == ids


def test_special_tokens_are_tokens_wherever_they_stand(plain: Tokenizer) -> None:
    ids = encode_chat(chatting(plain, "{{ bos_token }}{{ messages[0].content }}"), chat_of("a</s>b"))
    assert ids.tolist() == [258, plain.encode("a")[0], 259, plain.encode("b")[0]]


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        ("{% if %}", "fails on these messages: Expected an expression"),
        ("{{ raise_exception('no system message') }}", "fails on these messages: no system message"),
        ("{{ 1 / 0 }}", "fails on these messages: division by zero"),
        ("{{ messages[0].content + 1 }}", "fails on these messages: can only concatenate str"),
        ("{{ missing.part }}", "fails on these messages: 'missing' is undefined"),
        ("{{ messages.__class__.__mro__ }}", "fails on these messages: .*unsafe"),
        ("{{ messages.append(1) }}", "fails on these messages: .*'append' of 'list' object is unsafe"),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "fails on these messages: maximum recursion depth",
        ),
    ],
)
def test_a_template_that_fails_is_a_data_error(template: str, hint: str, plain: Tokenizer) -> None:
    with pytest.raises(DataError, match=hint):
        render_chat(chatting(plain, template), chat_of("Hello"))


def test_a_model_without_a_template(plain: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"has no chat template.*give plain prompts, without chat=True"):
        render_chat(plain, chat_of("Hello"))
    special = attrs.evolve(SpecialTokens(), chat_template="")
    assert render_chat(with_special(plain, special), chat_of("Hello")) == ""


def test_a_missing_package_is_named(plain: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"python -m pip install 'jinja2>=3\.1\.6'"):
        render_chat(chatting(plain, CHATML), chat_of("Hello"))
