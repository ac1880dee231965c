"""A chat as the text that a model was trained on: its chat template, rendered; and that text as tokens.

    text   = template(messages, add_generation_prompt, bos_token, eos_token, ...)
    tokens = encode(text)          nothing is added: the template writes the special tokens that it wants

The template is code of whoever made the model, so it runs in Jinja's sandbox, with what `transformers` gives
to it (`raise_exception`, `strftime_now`, `tojson`, loop controls, `{% generation %}`).
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.data.tokenizers import Tokenizer, Tokens, guarded
from dba_core.errors import DataError, UsageError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """The text of a chat. messages: `{"role": "user", "content": "..."}` and so on, oldest first.

    add_generation_prompt: end it where the model's answer begins. Raises DataError for a model without a chat
    template, for a template that is broken or refuses these messages, and without the package jinja2.
    """
    special = tokenizer.special
    if special.chat_template is None:
        raise DataError(
            f"the model of tokenizer {tokenizer.name!r} has no chat template, so it is no chat model or its "
            "tokenizer_config.json is missing; give plain prompts, without chat=True"
        )
    template = special.chat_template
    return guarded(
        lambda: _compiled(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special.names,
        ),
        lambda reason: DataError(
            f"the chat template of tokenizer {tokenizer.name!r} fails on these messages: {reason}. Give "
            "other messages (some templates take no system message), or plain prompts, without chat=True"
        ),
    )


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> Tokens:
    """The tokens of `render_chat`. A special token that the text holds becomes that token, wherever in the
    text it stands, within a message too: as in transformers.
    """
    return tokenizer.encode(render_chat(tokenizer, messages, add_generation_prompt=add_generation_prompt))


def chat_of(prompt: str, system: str | None = None) -> list[Message]:
    """The messages of one question."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _compiled(template: str) -> Template:
    if importlib.util.find_spec("jinja2") is None:
        raise DataError(
            "chat templates need the package 'jinja2', which is not installed. Install it: "
            "python -m pip install 'jinja2>=3.1.6'"
        )
    import jinja2.ext
    from jinja2 import TemplateError, nodes, parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the model says; for a text alone it is just its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: parser.Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(inside, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)  # Jinja's escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


@attrs.frozen(kw_only=True)
class Reading:
    """How a model reads prompts. chat: each is a chat's first message, after `system`. bos: it begins with
    the model's BOS token. eos: a continuation ends at its end-of-text tokens. None: as the tokenizer has it.
    """

    chat: bool = False
    system: str | None = None
    bos: bool | None = None
    eos: bool | None = None

    def __attrs_post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise UsageError("a system message is the first one of a chat; ask for the chat too (chat=True)")
        if self.chat and self.bos is not None:
            raise UsageError("in a chat the model's template writes the special tokens; leave bos= out")

    def tokens(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of every text. Raises DataError for what is no list of texts, UsageError for a BOS token
        that the model does not have.
        """
        elsewhere = "and tokens to dba_core.generate(run.model, ...)"
        if not isinstance(texts, (list, tuple)):
            raise DataError(
                f"prompts is a {type(texts).__name__}; give a text or a list of texts, {elsewhere}",
                path="generation.prompt",
            )
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(
                    f"prompt {row} is {text!r} ({type(text).__name__}); give texts, {elsewhere}",
                    path="generation.prompt",
                )
        if self.chat:
            return [encode_chat(tokenizer, chat_of(text, self.system)).tolist() for text in texts]
        special = tokenizer.special.chosen(bos=self.bos)
        return [special.start(tokenizer.encode(text)).tolist() for text in texts]

    def stop_tokens(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """What ends a sequence. Raises UsageError where they are asked for and the model names none."""
        return () if self.eos is False else tokenizer.special.chosen(eos=self.eos).eos
