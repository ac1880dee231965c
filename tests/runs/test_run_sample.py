"""`dba sample` on a trained run: seeds, batches, stop texts, policies, backends, files."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs_tiny import POLICY, dba

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from dba_core.printable import printable  # noqa: E402


def sample(tiny, *args: str):
    done = dba("sample", str(tiny.folder.path), *args)
    assert done.code == 0, done.err
    assert done.err == ""
    return done


def test_streamed_text_is_the_text_of_the_document(tiny) -> None:
    args = ["--prompt", "7 green", "--max-new-tokens", "30", "--seed", "3"]
    streamed = sample(tiny, *args).out
    (found,) = sample(tiny, *args, "--json").json["samples"]
    assert streamed == printable(f"7 green{found['text']}", lines=True) + "\n"
    assert len(found["tokens"]) == 30


def test_the_runs_own_settings_hold_where_none_are_given(tiny) -> None:
    document = sample(tiny, "--prompt", "7 green", "--json").json
    assert document["kv_policy"] == POLICY, "the run's policy, not the text None"
    assert document["generation"]["max_new_tokens"] == 12
    assert document["generation"]["seed"] == 5
    assert len(document["samples"][0]["tokens"]) == 12
    assert (document["checkpoint"], document["run"]) == ("best", str(tiny.folder.path))


def test_the_seed_decides(tiny) -> None:
    def text(*args: str) -> str:
        return sample(tiny, "--prompt", "7", *args, "--json").json["samples"][0]["text"]

    assert text("--seed", "1") == text("--seed", "1")
    assert text("--seed", "1") != text("--seed", "2")
    greedy = text("--seed", "1", "--temperature", "0")
    assert greedy == text("--seed", "2", "--temperature", "0") == text("--seed", "3", "--top-k", "1")


def test_prompts_of_different_lengths_are_continued_together(tiny) -> None:
    prompts = ["7", "99 green bottles hanging on"]
    both = sample(
        tiny, *(word for text in prompts for word in ("--prompt", text)), "--temperature", "0", "--json"
    ).json
    for prompt, found in zip(prompts, both["samples"], strict=True):
        alone = sample(tiny, "--prompt", prompt, "--temperature", "0", "--json").json["samples"][0]
        assert found == alone
        assert found["prompt"] == prompt
    text = sample(tiny, "--prompt", prompts[0], "--prompt", prompts[1], "--temperature", "0").out
    first, second = (printable(each["prompt"] + each["text"], lines=True) for each in both["samples"])
    assert text == f"--- 1\n{first}\n--- 2\n{second}\n"


def test_it_ends_before_a_stop_text(tiny) -> None:
    args = ["--prompt", "7", "--temperature", "0", "--max-new-tokens", "20"]
    whole = sample(tiny, *args, "--json").json["samples"][0]["text"]
    stop = whole[3:5]
    ended = sample(tiny, *args, "--stop", stop, "--json").json["samples"][0]["text"]
    assert ended == whole[: whole.index(stop)]
    assert sample(tiny, *args, "--stop", stop).out == printable(f"7{ended}", lines=True) + "\n"


def test_policy_and_backend_are_those_asked_for(tiny) -> None:
    policy = "ksem=fp32,kgeo=fp32,v=fp32,resid=0"
    args = ["--prompt", "7", "--kv-policy", policy, "--plugin", "decode_backend=streaming:block=8", "--json"]
    assert sample(tiny, *args).json["kv_policy"] == policy


def test_a_prompt_from_a_file(tiny, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("12 grün", encoding="utf-8")
    args = ["--prompt-file", str(tmp_path / "prompt.txt"), "--json"]
    assert sample(tiny, *args).json["samples"][0]["prompt"] == "12 grün"


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["--temperature", "-1"], 2, "--temperature: -1"),
        (["--top-p", "2"], 2, "--top-p: 2"),
        (["--checkpoint", "first"], 2, "'last'"),
        (["--plugin", "decode_backend=nosuch"], 4, "nosuch"),
        (["--prompt", ""], 3, "prompt 1 is empty"),
    ],
)
def test_wrong_settings_are_refused(tiny, args: list[str], code: int, hint: str) -> None:
    done = dba("sample", str(tiny.folder.path), "--prompt", "7", *args)
    assert done.code == code
    assert hint in done.err


def test_a_damaged_checkpoint_is_an_error(tiny, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny.folder.path, broken)
    weights = next(broken.glob("checkpoint/step-*/model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = dba("sample", str(broken), "--prompt", "7")
    assert done.code == 1
    assert done.out == ""
    assert "model.safetensors" in done.err
