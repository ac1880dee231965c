"""`dba sample`: continue prompts with the model of a run, through the KV cache that the policy asks for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli.legacy import refuse_legacy_flags
from dba_cli.run_options import KV_POLICY_HELP, SPECIAL_HELP, RunFlags, run_options
from dba_core.errors import UsageError

if TYPE_CHECKING:
    from dba_core.config.generation import GenerationConfig
    from dba_core.runs.load import Run


@refuse_legacy_flags
@click.command()
@run_options
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="What to continue; may be repeated.")
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A UTF-8 file that is one prompt; '-' is standard input.",
)
@click.option("--chat", is_flag=True, help="Put each prompt to the model as a chat's first message.")
@click.option("--system", metavar="TEXT", help="With --chat: the system message before it.")
@click.option(
    "--bos/--no-bos",
    default=None,
    help=f"Begin a prompt with the model's BOS token, or do not. {SPECIAL_HELP}",
)
@click.option(
    "--eos/--no-eos",
    default=None,
    help="End at the model's end-of-text tokens, or go on. Without it: end, where the model names any.",
)
@click.option("--max-new-tokens", type=int, help="Tokens to add to each prompt.")
@click.option("--temperature", type=float, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, help="Sample from the K likeliest tokens; 0 is off.")
@click.option("--top-p", type=float, help="Sample from the likeliest tokens that hold this share; 1 is off.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated.")
@click.option("--kv-policy", metavar="TEXT", help=f"{KV_POLICY_HELP} Without it: the run's own.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def sample(
    run_flags: RunFlags,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    chat: bool,
    system: str | None,
    bos: bool | None,
    eos: bool | None,
    kv_policy: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Continue a prompt with the model of RUN: a run's folder, a part of its name, or 'latest'.

    What is not given is as in the run's configuration.

    \b
    Examples:
      dba sample latest --prompt "The "
      dba sample latest --prompt "The " --prompt "A function is" --temperature 0 --max-new-tokens 80
      dba sample runs/smol --chat --prompt "What is a cache?" --system "Answer in one sentence."
      dba sample latest --prompt "def " --kv-policy "ksem=fp16,kgeo=fp16,v=fp16"
    """
    from dba_core.config.kv_policy import KVCachePolicy

    asked = _Asked(texts=_all_prompts(prompts, prompt_file), chat=chat, system=system, bos=bos, eos=eos)
    policy = None if kv_policy is None else KVCachePolicy.parse(kv_policy)
    loaded = run_flags.load()
    generation = _generation(loaded.config.generation, settings)
    chosen = policy or loaded.config.kv_policy
    streamed = len(asked.texts) == 1 and not as_json
    results = _generate(loaded, asked, generation, chosen, streamed=streamed)
    if as_json:
        _echo_document(loaded, results, generation, chosen.short)
    elif streamed:
        click.echo()
    else:
        for number, (text, result) in enumerate(zip(asked.texts, results, strict=True), 1):
            click.echo(f"--- {number}\n{text}{asked.separator}{_shown(result['text'])}")


@attrs.frozen(kw_only=True)
class _Asked:
    """The prompts, and how the model is to read them."""

    texts: list[str]
    chat: bool
    system: str | None
    bos: bool | None
    eos: bool | None

    def __attrs_post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise UsageError("--system is the first message of a chat; give --chat too")
        if self.chat and self.bos is not None:
            raise UsageError("with --chat the model's template writes the special tokens; leave --bos out")

    @property
    def separator(self) -> str:
        """A continuation follows its prompt at once, an answer on a line of its own."""
        return "\n" if self.chat else ""

    def tokens(self, run: Run) -> list[list[int]]:
        """The tokens of every prompt."""
        from dba_core.data.chat import chat_of, encode_chat

        tokenizer = run.tokenizer
        if self.chat:
            return [encode_chat(tokenizer, chat_of(text, self.system)).tolist() for text in self.texts]
        special = tokenizer.special.chosen(bos=self.bos)
        return [special.start(tokenizer.encode(text)).tolist() for text in self.texts]

    def stop_tokens(self, run: Run) -> tuple[int, ...]:
        """What ends a sequence. Raises UsageError for --eos with a model that names none."""
        special = run.tokenizer.special.chosen(eos=self.eos)
        return () if self.eos is False else special.eos


def _all_prompts(prompts: tuple[str, ...], prompt_file: Path | None) -> list[str]:
    texts = list(prompts)
    if prompt_file is not None:
        texts.append(_read_prompt(prompt_file))
    if not texts:
        raise UsageError('nothing to continue; give --prompt "TEXT" or --prompt-file FILE')
    return texts


def _read_prompt(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--prompt-file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--prompt-file {str(path)!r} is not UTF-8 text (byte {error.start}); give a text file"
        ) from None


def _generation(recorded: GenerationConfig, settings: dict[str, Any]) -> GenerationConfig:
    """The run's settings with those of the command line over them. Raises ConfigError for wrong values."""
    import attrs

    from dba_core.errors import ConfigError

    given = {name: value for name, value in settings.items() if value not in (None, ())}
    if given.get("top_k") == 0:
        given["top_k"] = None
    try:
        return attrs.evolve(recorded, **given)
    except ConfigError as error:
        raise UsageError(f"--{error.path.replace('_', '-')}: {error.message}") from None


def _generate(
    run: Run, asked: _Asked, generation: GenerationConfig, policy: Any, *, streamed: bool
) -> list[dict[str, Any]]:
    """The new tokens and their text; one prompt is written to stdout while it grows."""
    from dba_core.generation.loop import generate

    prompts, stop_tokens = asked.tokens(run), asked.stop_tokens(run)
    streams = [run.tokenizer.stream(context=prompt) for prompt in prompts]
    pieces: list[list[str]] = [[] for _ in prompts]

    def take(row: int, piece: str) -> None:
        if streamed:
            before = "" if pieces[row] or asked.chat else asked.texts[row]
            click.echo(before + _shown(piece), nl=False)
        pieces[row].append(piece)

    new = generate(
        run.model,
        prompts,
        generation,
        kv_policy=policy,
        tokenizer=run.tokenizer,
        seed=run.config.seed,
        stop_tokens=stop_tokens,
        on_token=lambda row, token: take(row, streams[row].push([token])),
    )
    for row, stream in enumerate(streams):
        take(row, stream.finish())
    return [
        {"prompt": text, "prompt_tokens": prompt, "text": "".join(parts), "tokens": tokens}
        for text, prompt, parts, tokens in zip(asked.texts, prompts, pieces, new, strict=True)
    ]


def _shown(text: str) -> str:
    """On a terminal a sampled control character must do nothing."""
    from dba_core.runs.rows import printable

    return printable(text) if sys.stdout.isatty() else text


def _echo_document(
    run: Run, results: list[dict[str, Any]], generation: GenerationConfig, policy: str
) -> None:
    from dba_cli.rendering import echo_json

    echo_json(
        {
            "run": str(run.folder.path),
            "checkpoint": run.which,
            "checkpoint_step": run.step,
            "kv_policy": policy,
            "generation": {**generation.to_dict(), "prompt": None},
            "samples": results,
        }
    )
