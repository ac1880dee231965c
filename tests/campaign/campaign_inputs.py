"""The pristine inputs of the campaign: models, runs, corpora of some kilobytes, and the command for each."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import origin_oracle
from llama_oracle import CONFIG, random_weights, write_folder
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from dba_cli.main import main


@attrs.frozen
class Input:
    """A kind of input. files: those that are damaged. command: the arguments of `dba` for its folder.
    losses: where its JSON holds a loss.
    """

    name: str
    make: Callable[[Path], None]
    files: tuple[str, ...]
    command: Callable[[Path], list[str]]


def _tokenizer() -> Tokenizer:
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


def _text(folder: Path) -> None:
    (folder / "text.txt").write_text("".join(f"{n} green bottles hanging on the wall\n" for n in range(60)))


def _huggingface(folder: Path) -> None:
    write_folder(
        folder, {**CONFIG, "num_hidden_layers": 1}, random_weights({**CONFIG, "num_hidden_layers": 1})
    )
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "!", "eos_token": {"content": "#"}})
    )
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [2, 3]}))
    _text(folder)


def _sharded(folder: Path) -> None:
    _huggingface(folder)
    weights = random_weights({**CONFIG, "num_hidden_layers": 1})
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _gguf(folder: Path) -> None:
    from gguf import GGUFWriter, TokenType

    config = {**CONFIG, "num_hidden_layers": 1, "vocab_size": 257}
    writer = GGUFWriter(str(folder / "model.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500.0)
    writer.add_vocab_size(257)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*sorted(ByteLevel.alphabet()), "th"])
    writer.add_token_types([TokenType.NORMAL] * 257)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    theirs = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers.0.": "blk.0.",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, tensor in random_weights(config).items():
        for ours, other in theirs.items():
            name = name.replace(ours, other)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _text(folder)


def _origin(folder: Path) -> None:
    config = {**origin_oracle.CONFIG, "vocab_size": 256}
    origin_oracle.write(folder / "old.pt", config, origin_oracle.random_state(config))
    _text(folder)


_SETTINGS = {
    "model.context": 16,
    "model.n_layers": 1,
    "model.d_model": 16,
    "model.attention.n_heads": 2,
    "training.steps": 4,
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.eval_every": 2,
    "training.eval_tokens": 32,
    "training.log_every": 1,
    "evaluation.tokens": 32,
    "evaluation.fidelity_tokens": 20,
    "generation.max_new_tokens": 4,
}
TINY = [word for key, value in _SETTINGS.items() for word in ("--set", f"{key}={value}")] + ["--quiet"]


def _run(folder: Path) -> None:
    _text(folder)
    _quietly(["run", "--data", str(folder / "text.txt"), "--out", str(folder / "runs"), *TINY])
    (made,) = (folder / "runs").iterdir()
    made.rename(folder / "run")
    (directory,) = {path.name for path in (folder / "run" / "checkpoint").glob("step-*")}
    # one name for every run of the campaign; the pointers say where it is
    for pointer in ("best", "last"):
        path = folder / "run" / "checkpoint" / pointer
        path.write_text(path.read_text().replace(directory, "step-00000004-00000000"))
    (folder / "run" / "checkpoint" / directory).rename(
        folder / "run" / "checkpoint" / "step-00000004-00000000"
    )


def _arrays(folder: Path) -> None:
    _text(folder)
    tokens = np.frombuffer((folder / "text.txt").read_bytes(), dtype=np.uint8)
    np.save(folder / "tokens.npy", tokens.astype(np.uint16))


def _config(folder: Path) -> None:
    _text(folder)
    done = _quietly(["config", "show", "--json"])
    (folder / "config.json").write_text(json.dumps(json.loads(done)["config"]))


def _quietly(command: list[str]) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    assert code == 0, err.getvalue()
    return out.getvalue()


def _convert(model: str, *more: str) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        text = str(folder / "text.txt")
        where = ["convert", str(folder / model), "--out", str(folder.parent / f"{folder.name}-out"), "--keep"]
        return [*where, "--eval", text, "--eval-tokens", "64", "--context", "32", "--json", "--quiet", *more]

    return command


_CHECKPOINT = "run/checkpoint"
INPUTS = (
    Input(
        "huggingface",
        _huggingface,
        (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        ),
        _convert("."),
    ),
    Input("sharded", _sharded, ("model.safetensors.index.json", "a.safetensors"), _convert(".")),
    Input("gguf", _gguf, ("model.gguf",), _convert("model.gguf")),
    Input("origin", _origin, ("old.pt",), _convert("old.pt", "--tokenizer", "bytes")),
    Input(
        "run",
        _run,
        (
            "run/resolved_config.json",
            f"{_CHECKPOINT}/best",
            f"{_CHECKPOINT}/step-00000004-00000000/state.json",
            f"{_CHECKPOINT}/step-00000004-00000000/model.safetensors",
        ),
        lambda folder: ["eval", str(folder / "run"), "--json"],
    ),
    Input(
        "resumed run",
        _run,
        (
            "run/metrics.jsonl",
            f"{_CHECKPOINT}/last",
            f"{_CHECKPOINT}/step-00000004-00000000/state.json",
            "run/resolved_config.json",
        ),
        lambda folder: ["run", "--resume", str(folder / "run"), "--json", "--quiet"],
    ),
    Input(
        "tokens",
        _arrays,
        ("tokens.npy",),
        lambda folder: ["run", "--data", str(folder / "tokens.npy"), "--dry-run", "--json", *TINY],
    ),
    Input(
        "configuration",
        _config,
        ("config.json",),
        lambda folder: ["run", "--config", str(folder / "config.json"), "--dry-run", "--json", "--quiet"],
    ),
)
