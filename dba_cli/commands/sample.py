"""`dba sample`: continue prompts with the model of a run, through the KV cache that the policy asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dba_cli import completion
from dba_cli.hints import refuse_legacy_flags
from dba_cli.options import SPECIAL_HELP, DecodingRunChoice, json_option, run_options
from dba_cli.output.terminal import GrowingText, echo, terminal_input
from dba_core.errors import UsageError
from dba_core.runs.choosing import KV_POLICY_HELP

if TYPE_CHECKING:
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_core.config.run import GenerationConfig
    from dba_core.data.chat import Reading
    from dba_core.runs.load import Continuation, Run


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
@click.option(
    "--kv-policy",
    metavar="TEXT",
    shell_complete=completion.kv_policy,
    help=f"{KV_POLICY_HELP} Without it: the run's own.",
)
@json_option
def sample(
    run_flags: DecodingRunChoice,
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
      dba sample latest --prompt "def " --kv-policy "ksem=fp16,kgeo=fp16,v=fp16" --weights int8
    """
    texts = _all_prompts(prompts, prompt_file)
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_core.data.chat import Reading

    reading = Reading(chat=chat, system=system, bos=bos, eos=eos)
    policy = None if kv_policy is None else KVCachePolicy.parse(kv_policy)
    from dba_cli.output.progress import TerminalReporter

    loaded = run_flags.load(TerminalReporter())
    generation = _generation(loaded.config.generation, settings)
    chosen = policy or loaded.kv_policy
    streamed = len(texts) == 1 and not as_json
    results = _continued(loaded, texts, generation, reading, chosen, streamed=streamed)
    if as_json:
        _echo_document(loaded, texts, results, generation, chosen.short)
    elif not streamed:
        between = "\n" if chat else ""  # an answer is on a line of its own
        for number, (text, result) in enumerate(zip(texts, results, strict=True), 1):
            echo(f"--- {number}\n{text}{between}{result.text}")


def _all_prompts(prompts: tuple[str, ...], prompt_file: Path | None) -> list[str]:
    texts = list(prompts)
    if prompt_file is not None:
        texts.append(_read_prompt(prompt_file))
    if not texts:
        raise UsageError('nothing to continue; give --prompt "TEXT" or --prompt-file FILE')
    return texts


def _read_prompt(path: Path) -> str:
    """The text of a file or of standard input, whose line ends are newlines, as in a prompt that is typed."""
    from dba_core.documents import decode_text, read_text

    advice = "Give a UTF-8 text file to --prompt-file"
    if str(path) == "-":
        text = decode_text(terminal_input(), source="standard input", error=UsageError, advice=advice)
    else:
        text = read_text(path, error=UsageError, advice=advice)
    return text.replace("\r\n", "\n")


def _generation(recorded: GenerationConfig, settings: dict[str, Any]) -> GenerationConfig:
    """The run's settings with those of the command line over them. Raises UsageError for wrong values."""
    from dba_core.errors import ConfigError
    from dba_core.runs.load import with_settings

    try:
        return with_settings(recorded, **settings)
    except ConfigError as error:
        raise UsageError(f"--{error.path.replace('_', '-')}: {error.message}") from None


def _continued(
    run: Run,
    texts: list[str],
    generation: GenerationConfig,
    reading: Reading,
    policy: KVCachePolicy,
    *,
    streamed: bool,
) -> list[Continuation]:
    """One prompt is written to stdout while it grows; of a chat, the answer alone."""
    shown, started = GrowingText(), reading.chat

    def write(_row: int, piece: str) -> None:
        nonlocal started
        shown.add(piece if started else texts[0] + piece)
        started = True

    if not streamed:
        return run.continuations(texts, generation, reading=reading, kv_policy=policy)
    continued = run.continuations(texts, generation, reading=reading, kv_policy=policy, on_text=write)
    shown.end()
    return continued


def _echo_document(
    run: Run, texts: list[str], results: list[Continuation], generation: GenerationConfig, policy: str
) -> None:
    from dba_cli.output.rendering import echo_json

    echo_json(
        {
            "run": str(run.folder.path),
            "checkpoint": run.which,
            "checkpoint_step": run.step,
            "kv_policy": policy,
            "weights": run.model.weight_format,
            "generation": {**generation.to_dict(), "prompt": None},
            "samples": [
                {
                    "prompt": text,
                    "prompt_tokens": result.prompt_tokens,
                    "text": result.text,
                    "tokens": result.tokens,
                }
                for text, result in zip(texts, results, strict=True)
            ],
        }
    )
