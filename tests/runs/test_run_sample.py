"""`dba sample` on a trained run: seeds, batches, stop texts, policies, backends, files."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs_tiny import POLICY, dba

from dba_core.errors import ConfigError
from dba_core.printable import printable
from dba_core.runs.load import load_run

pytestmark = pytest.mark.torch


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
    prompts = ["7", "99 green bottle"]
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


def test_python_gives_what_the_command_gives(tiny) -> None:
    run = load_run(tiny.folder.path)
    prompts = ["7", "99 green bottle"]
    given = [word for text in prompts for word in ("--prompt", text)]
    plain = [each["text"] for each in sample(tiny, *given, "--json").json["samples"]]
    assert run.generate(prompts) == plain
    assert run.generate(prompts[0]) == plain[0]
    more = ["--max-new-tokens", "9", "--temperature", "1.5", "--top-k", "7", "--top-p", "1", "--seed", "3"]
    policy = "ksem=q4_0@8,kgeo=q4_0@8,v=q4_0@8"
    other = sample(tiny, *given, *more, "--kv-policy", policy, "--json").json["samples"]
    settings = {"max_new_tokens": 9, "temperature": 1.5, "top_k": 7, "top_p": 1.0, "seed": 3}
    made = run.generate(prompts, **settings, kv_policy=policy)
    assert made == [each["text"] for each in other] != plain
    first = plain[0][3]
    assert (
        run.generate("7", stop=first) == run.generate("7", stop=[first]) == plain[0][: plain[0].index(first)]
    )
    assert run.generate("7", max_new_tokens=0) == ""
    assert run.generate([]) == []


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1, 2]], {}, r"prompt 0 is \[1, 2\] \(list\); give texts, and tokens to dba_core\.generate"),
        (7, {}, "prompts is a int; give a text or a list of texts"),
        (["7", ""], {}, "prompt 1 is empty"),
        ("7", {"max_new_tokens": -1}, "max_new_tokens: -1"),
        ("7", {"temperature": "hot"}, "temperature: 'hot'"),
        ("7", {"max_tokens": 3}, "unknown setting 'max_tokens'. Did you mean 'max_new_tokens'"),
    ],
)
def test_python_refuses_by_name(tiny, prompts: object, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run(tiny.folder.path).generate(prompts, **settings)


def test_a_run_says_what_it_is(tiny) -> None:
    run = load_run(tiny.folder.path, "last")
    text = repr(run)
    assert text.startswith(f"<Run {str(tiny.folder.path)!r}: last weights of step 8, decoupled, 2 layers of ")
    assert f"{sum(p.numel() for p in run.model.parameters()):,} parameters, context 16" in text
    assert POLICY in text


@pytest.mark.filterwarnings("always::dba_core.errors.LongPromptWarning")
def test_a_prompt_beyond_the_context_is_said_in_one_line(tiny) -> None:
    done = dba("sample", str(tiny.folder.path), "--prompt", "green bottles hanging", "--max-new-tokens", "2")
    assert done.code == 0
    assert done.err == (
        "warning: prompt 0 has 21 tokens, more than the context of 16 that the model was trained with; what "
        "follows is outside of what it has learned\n"
    )


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["--temperature", "-1"], 2, "--temperature: -1"),
        (["--top-p", "2"], 2, "--top-p: 2"),
        (["--checkpoint", "first"], 2, "best, last"),
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
