"""Files that are damaged, lie about their sizes, hold what is no number: one clear error, no memory taken."""

from __future__ import annotations

import collections
import json
import math
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import origin_oracle as origin
import pytest
import torch
from damage import cases, ends
from gguf_files import write_gguf
from llama_oracle import CONFIG, random_weights, write_folder

from dba_cli.main import main
from dba_core.documents import LFS_POINTER
from dba_core.errors import CheckpointError, DBAError, UnsupportedError
from dba_core.model.pretrained import open_pretrained
from dba_plugins.checkpoints.gguf.header import GgufTensor, read_gguf_header
from dba_plugins.checkpoints.gguf.weights import TYPES, _read

pytestmark = pytest.mark.torch

DOWN = "model.layers.1.mlp.down_proj.weight"
WIDE = {**CONFIG, "hidden_size": 32, "intermediate_size": 64}


def test_damaged_files_end_in_a_model_or_in_one_of_our_errors(tmp_path: Path) -> None:
    """150 of the files that `damage.py` makes; any other exception fails."""
    pytest.importorskip("gguf")
    ended = collections.Counter(
        f"{kind} {ends(given)}" for kind, given in cases(150, seed=7, folder=tmp_path)
    )
    kinds = {name.split()[0] for name in ended if "Error" in name}
    assert kinds == {"config.json", "safetensors", "index", "gguf", "pt"}
    assert not any("message" in name for name in ended)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_named_with_its_place(value: float, tmp_path: Path) -> None:
    weights = random_weights(WIDE)
    weights[DOWN][3, 5] = value
    with pytest.raises(CheckpointError, match=rf"safetensors: {DOWN} holds 1 of 2048 .*at \[3, 5\]"):
        open_pretrained(write_folder(tmp_path / "m", WIDE, weights)).build()
    state = origin.random_state(origin.CONFIG)
    state["blocks.0.attn.v_null"][0, 0, 7] = value
    with pytest.raises(CheckpointError, match=r"old\.pt: blocks\.0\.attn\.v_null .*at \[0, 0, 7\]"):
        open_pretrained(origin.write(tmp_path / "old.pt", origin.CONFIG, state)).build()
    pytest.importorskip("gguf")
    weights = random_weights(WIDE)
    weights["model.layers.0.self_attn.q_proj.weight"][1, 2] = value  # row 1 of 8 is pair 1, part 0: row 2
    path = write_gguf(tmp_path / "m.gguf", WIDE, weights)
    with pytest.raises(CheckpointError, match=r"m\.gguf: blk\.0\.attn_q\.weight .*at \[2, 2\]"):
        open_pretrained(path).build()


def test_a_block_whose_scale_is_no_number(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "m.gguf", WIDE, random_weights(WIDE), kind="Q8_0")
    source = open_pretrained(path)
    source.build()
    tensor = read_gguf_header(path, {8: (32, 34), 0: (1, 4)}).tensors["blk.1.ffn_down.weight"]
    at = path.read_bytes().index(bytes(tensor.data[5]))
    for scale in (math.nan, math.inf):
        content = bytearray(path.read_bytes())
        content[at : at + 2] = struct.pack("<e", scale)
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight holds 32 of 2048 .*at \[5, 0\]"):
            open_pretrained(path).build()


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_that_is_taken_can_be_read(kind: str) -> None:
    constants = pytest.importorskip("gguf.constants")
    number = constants.GGMLQuantizationType[kind]
    elements, n_bytes = constants.GGML_QUANT_SIZES[number]
    data = torch.zeros(3, n_bytes * 256 // min(elements, 256), dtype=torch.uint8).numpy()
    shape = (3, data.shape[1] // n_bytes * elements)
    assert _read(GgufTensor(name="a", kind=int(number), shape=shape, data=data)).shape == shape


def files(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """What is given, and the file that it stands on."""
    pytest.importorskip("gguf")
    folder = write_folder(tmp_path / "m", WIDE, random_weights(WIDE))
    gguf = write_gguf(tmp_path / "m.gguf", WIDE, random_weights(WIDE))
    old = origin.write(tmp_path / "old.pt", origin.CONFIG, origin.random_state(origin.CONFIG))
    return {"hf": (folder, folder / "model.safetensors"), "gguf": (gguf, gguf), "pt": (old, old)}


@pytest.mark.parametrize("kind", ["hf", "gguf", "pt"])
def test_files_that_hold_nothing_of_the_model(kind: str, tmp_path: Path) -> None:
    given, file = files(tmp_path)[kind]
    whole = file.read_bytes()
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        open_pretrained(given)
    file.write_text(f"{LFS_POINTER}v1\noid sha256:00\nsize 9\n", encoding="ascii")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_pretrained(given)
    for content in (b"\0" * 100, b"\xff" * 100, whole[:-1], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            open_pretrained(given)


def safetensors_header(tmp_path: Path, change: Any) -> Path:
    folder = write_folder(tmp_path / "m", CONFIG, random_weights(CONFIG))
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    head = json.loads(content[8 : 8 + size])
    change(head["model.norm.weight"])
    text = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 40]},
        {"shape": [1 << 40, 1 << 40]},
        {"data_offsets": [0, 96]},
        {"data_offsets": [0, 1 << 62]},
        {"dtype": "F1"},
        {"shape": None},
    ],
)
def test_a_safetensors_header_that_lies(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_pretrained(safetensors_header(tmp_path, lambda entry: entry.update(change)))


TWO = {"tensors": 2, "fields": 0}


def gguf_of(tmp_path: Path, *parts: bytes, tensors: int = 0, fields: int = 1) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + b"".join(parts))
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(axes: tuple[int, ...], *, kind: int = 0, offset: int = 0, name: str = "a") -> bytes:
    packed = struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)
    return text(name) + packed


@pytest.mark.parametrize(
    ("parts", "counts", "message"),
    [
        ([], {"fields": 1 << 62}, "entries are to follow"),
        ([], {"tensors": 1 << 62, "fields": 0}, "entries are to follow"),
        ([struct.pack("<Q", 1 << 62), b"a" * 50], {}, "entries are to follow"),
        ([text("a"), struct.pack("<IIQ", 9, 4, 1 << 60), b"a" * 50], {}, "entries are to follow"),
        ([text("a"), struct.pack("<IIQ", 9, 8, 1 << 60), b"a" * 50], {}, "entries are to follow"),
        ([text("a"), struct.pack("<IIQ", 9, 9, 1), b"a" * 50], {}, "an array of the type 9"),
        ([text("a"), struct.pack("<I", 77), b"a" * 50], {}, "unknown type 77"),
        ([struct.pack("<Q", 1), b"\xff" * 50], {}, "not UTF-8"),
        ([(text("a") + struct.pack("<IB", 0, 1)) * 2], {"fields": 2}, "the field a is there twice"),
        ([entry((1 << 40,))], {"tensors": 1, "fields": 0}, "bytes from byte"),
        ([entry((1 << 63, 1 << 63, 1 << 63))], {"tensors": 1, "fields": 0}, "bytes from byte"),
        ([entry((0,)), b"\0" * 99], {"tensors": 1, "fields": 0}, "has axes"),
        ([entry((33,), kind=8), b"\0" * 99], {"tensors": 1, "fields": 0}, "blocks of its type hold 32"),
        ([entry((1,) * 9), b"\0" * 99], {"tensors": 1, "fields": 0}, "has 9 axes"),
        ([entry((8,)), entry((8,), name="b", offset=16), b"\0" * 99], TWO, "a and b overlap"),
        ([entry((8,)), entry((8,), offset=32), b"\0" * 99], TWO, "the tensor a is there twice"),
    ],
)  # fmt: skip
def test_a_gguf_header_that_lies(
    parts: list[bytes], counts: dict[str, int], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(CheckpointError, match=message):
        open_pretrained(gguf_of(tmp_path, *parts, **counts))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"GGUF" + struct.pack("<I", 1), "GGUF version 1; supported: 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3), "other byte order"),
    ],
)
def test_other_versions_of_gguf(head: bytes, message: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(head + b"\0" * 99)
    with pytest.raises(UnsupportedError, match=message):
        open_pretrained(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("attention.head_count_kv", [2, 2], None),
        ("attention.head_count_kv", [2, 1], r"head_count_kv differs from layer to layer \(\[1, 2\]\)"),
        ("attention.head_count_kv", [2, 2, 2], "one for each of 2 layers"),
        ("feed_forward_length", [64, 32], "feed_forward_length differs"),
        ("attention.key_length", [8], "key_length is array"),
        ("attention.key_length", 1 << 30, "do not belong together"),
        ("block_count", 1 << 31, "describes 2147483648 layers"),
        ("vocab_size", 1 << 31, "do not belong together"),
        ("rope.freq_base", math.nan, "freq_base is nan"),
        ("attention.layer_norm_rms_epsilon", "x", "epsilon is 'x'"),
    ],
)
def test_numbers_of_a_gguf_file(name: str, value: Any, message: str | None, tmp_path: Path) -> None:
    pytest.importorskip("gguf")

    def more(writer: Any) -> None:
        key = f"llama.{name}"
        for table in writer.kv_data:
            table.pop(key, None)
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)

    path = write_gguf(tmp_path / "m.gguf", WIDE, random_weights(WIDE), more=more)
    if message is None:
        open_pretrained(path).build()
        return
    with pytest.raises(DBAError, match=message):
        open_pretrained(path)


def packed_again(path: Path) -> None:
    """The same archive, compressed."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def test_a_checkpoint_that_inflates(tmp_path: Path) -> None:
    state = {"tok_emb.weight": torch.zeros(1 << 16, 16)}
    path = origin.write(tmp_path / "a.pt", origin.CONFIG, state)
    packed_again(path)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(CheckpointError, match=r"is compressed, which torch\.save does not do"):
        open_pretrained(path)


def test_tensors_of_a_checkpoint_hold_their_own_elements(tmp_path: Path) -> None:
    state = {"tok_emb.weight": torch.zeros(1).expand(1 << 34, 16)}
    with pytest.raises(CheckpointError, match=r"fewer elements than that stored \(strides \(0, 0\)\)"):
        open_pretrained(origin.write(tmp_path / "a.pt", origin.CONFIG, state))
    one = torch.zeros(1 << 12)
    state = {f"blocks.{n}.ff.fc1.weight": one for n in range(9)}
    with pytest.raises(CheckpointError, match="they share what is stored"):
        open_pretrained(origin.write(tmp_path / "b.pt", origin.CONFIG, state))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", {"a": torch.zeros(3, dtype=torch.int64)}, "supported: dense floating-point"),
        ("model", {"a": torch.eye(3).to_sparse()}, "not unpickled"),
        ("model", {"a": torch.zeros(3, device="meta")}, "not unpickled"),
        ("model", {3: torch.zeros(3)}, "names in 'config' and 'model' are not all texts"),
        ("config", {"d_model": bytearray(9)}, "it names '__builtin__ bytearray'"),
        ("config", {"attn_mode": "standard", "d_model": 1 << 200}, "d_model is a whole number of 201 bits"),
        ("config", {"attn_mode": "standard", "d_model": 10**5000}, "its pickle is damaged or asks for more"),
        ("config", {"attn_mode": "standard", "d_model": [[]]}, r"d_model is \[\[\]\]"),
        ("config", {"attn_mode": "standard", "d_model": True}, "d_model is True"),
        ("config", {"attn_mode": ["standard"]}, "attn_mode is"),
    ],
)
def test_a_checkpoint_holds_plain_data(name: str, value: Any, message: str, tmp_path: Path) -> None:
    data = {"config": origin.CONFIG, "model": origin.random_state(origin.CONFIG), name: value}
    torch.save(data, tmp_path / "a.pt")
    with pytest.raises(DBAError, match=message):
        open_pretrained(tmp_path / "a.pt")


def test_a_checkpoint_nested_deeply(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit() // 4):
        deep = [deep]
    torch.save({"config": {"attn_mode": deep}, "model": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="attn_mode is"):
        open_pretrained(tmp_path / "a.pt")


def convert(folder: Path, tmp_path: Path, *more: str) -> int:
    (tmp_path / "e.txt").write_text("it was the best of times, it was the worst of times\n" * 4)
    paths = ["--out", str(tmp_path / "out"), "--eval", str(tmp_path / "e.txt"), "--tokenizer", "bytes"]
    return main(["convert", str(folder), *paths, "--keep", "--context", "32", "--eval-tokens", "64", *more])


def test_a_loss_that_is_no_number_leaves_no_folder(tmp_path: Path, capsys) -> None:
    weights = random_weights(WIDE)
    weights["model.layers.1.self_attn.q_proj.weight"] *= 1e38  # finite, and the queries are not
    assert convert(write_folder(tmp_path / "m", WIDE, weights), tmp_path) == 3
    assert "the loss of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_says_which_files_were_read_and_a_stretched_model_keeps_its_loss(
    tmp_path: Path, capsys
) -> None:
    transformers = pytest.importorskip("transformers")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    weights = random_weights({**WIDE, "tie_word_embeddings": False})
    folder = write_folder(tmp_path / "m", {**WIDE, "rope_scaling": yarn}, weights)
    llama = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert convert(folder, tmp_path) == 0
    shown = capsys.readouterr()
    assert "Read: config.json, model.safetensors." in shown.out
    assert "differs from the embedding" in shown.err
    report = json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))
    assert report["files"] == ["config.json", "model.safetensors"]
    page = (tmp_path / "out" / "conversion.md").read_text(encoding="utf-8")
    assert "Read: config.json, model.safetensors." in page
    assert "differs from the embedding" in page
    content = torch.tensor(list((tmp_path / "e.txt").read_bytes()))
    losses = []
    for start in (0, 32):
        row = content[start : start + 33]
        with torch.no_grad():
            logits = llama(row[None, :-1]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, row[1:]))
    (found,) = report["variants"][0]["losses"].values()
    assert found["nll"] == pytest.approx(float(sum(losses)) / 2, rel=2e-3)  # the cache holds fp16
