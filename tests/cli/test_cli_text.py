"""Text on its way out: streams of any encoding, names that look like markup, streams that nobody reads."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dba_cli.main import main
from dba_cli.output import terminal
from dba_cli.output.rendering import columns, console, echo_json, echo_toml, progress, sections, two_columns
from dba_core.errors import ConfigError, DBAError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from dba_core.report import Table

ENCODINGS = ("utf-8", "cp1252", "latin-1", "ascii", "cp437")
NASTY = "[/b] [link=http://x]y[/link] :smile: \x1b[31mred\x9b2J \u202e \udcff ± 你好 — é 🙂"
#: The same on a stream of Unicode, written down by hand.
SHOWN = "[/b] [link=http://x]y[/link] :smile: \\x1b[31mred\\x9b2J \\u202e \\udcff ± 你好 — é 🙂"


class Streams:
    """Standard output and standard error as files of one encoding, as `main` finds them."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self._out, self._err = (io.TextIOWrapper(io.BytesIO(), encoding, newline="") for _ in range(2))

    @contextlib.contextmanager
    def taken(self) -> Iterator[Streams]:
        with contextlib.redirect_stdout(self._out), contextlib.redirect_stderr(self._err):
            terminal.prepare()
            yield self

    @property
    def out(self) -> str:
        return self._written(self._out)

    @property
    def err(self) -> str:
        return self._written(self._err)

    def _written(self, stream: io.TextIOWrapper) -> str:
        stream.flush()
        stream.seek(0)
        return stream.buffer.read().decode(self.encoding)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "DBA_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def is_harmless(text: str) -> bool:
    return not {letter for letter in text if ord(letter) < 32 or 127 <= ord(letter) < 160} - {"\n"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gets_every_text(encoding: str) -> None:
    with Streams(encoding).taken() as streams:
        terminal.echo(NASTY)
        terminal.warn(NASTY)
        columns(NASTY, [NASTY, "b"], [(NASTY, "1")])
        two_columns(NASTY, [(NASTY, NASTY)])
        sections(NASTY, [Table.of_facts([("name", NASTY)], title=NASTY)])
    wanted = SHOWN.encode(encoding, "backslashreplace").decode(encoding)
    if encoding == "ascii":
        wanted = wanted.replace("\\xb1", "+-")
    assert streams.out.splitlines()[0] == wanted
    assert streams.out.count(wanted) >= 7, "echoed, two titles, a header, cells"
    assert streams.err == f"warning: {wanted}\n"
    assert is_harmless(streams.out)
    drawn = set(streams.out) & set("─│┌┐╷")
    assert bool(drawn) == (encoding == "utf-8")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_exact_in_every_encoding(encoding: str) -> None:
    document = {NASTY: [NASTY, "\u2028\x7f\U000e0041", float("nan")]}
    with Streams(encoding).taken() as streams:
        echo_json(document)
    assert json.loads(streams.out) == {NASTY: [NASTY, "\u2028\x7f\U000e0041", None]}
    assert is_harmless(streams.out)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_shown_configuration_reads_back_in_every_encoding(encoding: str) -> None:
    name = "[/b] \x1b \x9b é 你 🙂 \U000e0041"
    with Streams(encoding).taken() as streams:
        assert main(["config", "show", "--name", name]) == 0
    assert tomllib.loads(streams.out)["name"] == name
    assert is_harmless(streams.out)
    if encoding != "utf-8":
        assert streams.out.isascii()


@given(st.text(st.characters()))  # surrogates too
def test_any_text_is_harmless_on_any_stream(text: str) -> None:
    for encoding in ("utf-8", "ascii", "cp437"):
        with Streams(encoding).taken() as streams:
            terminal.echo(text, err=True)
            columns(text, [text], [[text]])
            echo_json([text])
            echo_toml(f"# {text!r}\n")
        assert is_harmless(streams.out.replace("\t", ""))
        assert is_harmless(streams.err.replace("\t", ""))


@given(st.lists(st.text("ab\r\n\x1b[31m\x9b"), max_size=6))
def test_pieces_show_what_the_whole_would(pieces: list[str]) -> None:
    """Escapes and line ends that are split across pieces."""
    with Streams("utf-8").taken() as whole:
        terminal.echo("".join(pieces))
    with Streams("utf-8").taken() as grown:
        text = terminal.GrowingText()
        for piece in pieces:
            text.add(piece)
        text.end()
    assert grown.out == whole.out
    assert is_harmless(grown.out)


def test_a_carriage_return_alone_is_shown_and_one_in_a_line_end_is_not() -> None:
    with Streams("utf-8").taken() as streams:
        text = terminal.GrowingText()
        for piece in ("a\r", "\nb\r", "c\r"):
            text.add(piece)
        text.end()
    assert streams.out == "a\nb\\rc\\r\n"


@pytest.mark.parametrize("error", [DBAError, UsageError, ConfigError])
def test_an_error_is_fit_for_a_terminal_and_keeps_its_message(error: type[DBAError]) -> None:
    raised = error(f"two\nlines {NASTY}")
    assert str(raised) == f"two\nlines {SHOWN}"
    assert is_harmless(repr(raised))
    assert raised.args == (f"two\nlines {NASTY}",)


@pytest.mark.parametrize("traceback", ["", "1"])
def test_an_error_about_a_foreign_name_is_harmless(traceback: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBA_TRACEBACK", traceback)
    with Streams("ascii").taken() as streams:
        code = main(["config", "check", f"{NASTY}.toml"])
    assert code == 3
    assert "\\x1b[31mred" in streams.err
    assert is_harmless(streams.err)


class Broken(io.TextIOWrapper):
    """A stream whose reader has gone, or whose disk is full."""

    def __init__(self, number: int) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self._number = number

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_what_is_said_on_the_way_is_lost_quietly(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """rich's own answer to a closed pipe is to leave the process."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.redirect_stderr(Broken(number)):
        terminal.echo("x", err=True)
        terminal.warn("x")
        console(stderr=True).print("x")
        with progress("{task.description}") as bar:
            assert not bar.disable
            bar.add_task("x", total=1)


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EPIPE, ""), (errno.ENOSPC, "error: standard output cannot be written: ")]
)
@pytest.mark.parametrize("args", [["plugins", "list"], ["plugins", "list", "--json"], ["config", "presets"]])
def test_output_that_cannot_be_written_is_exit_code_1(args: list[str], number: int, said: str) -> None:
    with Streams("utf-8").taken() as streams, contextlib.redirect_stdout(Broken(number)):
        assert main(args) == 1
    assert streams.err.startswith(said)
    assert bool(streams.err) == bool(said)


@pytest.mark.parametrize("width", ["0", "10", "nonsense"])
@pytest.mark.parametrize("term", ["dumb", "xterm", ""])
def test_narrow_and_dumb_terminals(width: str, term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COLUMNS", width), ("TERM", term), ("FORCE_COLOR", "1")):
        monkeypatch.setenv(name, value)
    with Streams("utf-8").taken() as streams:
        assert main(["plugins", "list"]) == 0
        assert main(["config", "show"]) == 0
        assert progress("x").disable == (term == "dumb")
    assert "summarizer" in streams.out


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full", "2> /dev/full"])
def test_closed_and_full_streams(redirect: str, tmp_path: Path) -> None:
    """By a shell: Python finds no stream at all, or finds out when it writes."""
    if os.name != "posix" or not Path("/dev/full").exists():
        pytest.skip("needs a POSIX shell and /dev/full")
    command = f"'{sys.executable}' -m dba_cli plugins list {redirect}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    if redirect == "> /dev/full":
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "error: standard output cannot be written: No space left on device\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert ("causal" in done.stdout) == redirect.startswith("2")


def test_a_locale_without_unicode(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)

    def dba(*args: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "dba_cli", *args]
        return subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, env=environment)

    shown = dba("config", "presets")
    assert shown.returncode == 0
    assert shown.stdout.isascii()
    named = dba("config", "show", "--name", "gr\u00fcn")
    assert named.returncode == 3
    said = "error: name: 'gr\\udcc3\\udcbcn' is no text: it holds \\udcc3 at position 2"
    assert named.stderr.decode("ascii").startswith(said)
    assert b"PYTHONUTF8=1" in named.stderr


def test_a_guarded_stream_may_outlive_what_it_writes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console that is collected late: Python 3.13 shows what `close` raises then."""
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    guarded = terminal.guarded(err=False)
    guarded.write("x")
    guarded.flush()
    assert stream.buffer.getvalue() == b"x"
    stream.close()
    guarded.close()
