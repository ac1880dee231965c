"""Completion in bash, where `=` and `:` end a word: `--plugin gate=ca` must be answered with `causal` alone.

click's own script passes the words as bash has broken them; this one passes the line, which is broken as a
shell reads it. The other shells pass whole words, and click's classes do for them.
"""

from __future__ import annotations

import os

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_SOURCE = r"""%(complete_func)s() {
    local IFS=$'\n' response completion type value
    response=$(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
            [[ $value == *[=.:/] ]] && compopt -o nospace
        fi
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class LineBashComplete(BashComplete):
    """Reads COMP_LINE up to the cursor; answers with what follows the last word break of bash."""

    source_template = _SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        """The whole words after the program, and the one that the cursor ends."""
        line = _line()
        words = split_arg_string(line)
        incomplete = "" if not words or _between_words(line) else words.pop()
        while words and os.path.basename(words[0]) != self.prog_name:
            words.pop(0)  # variables and commands that stand before it
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        _, incomplete = self.get_completion_args()
        option, equals, _ = incomplete.partition("=")
        value = str(item.value)
        if option.startswith("-") and equals and item.type == "plain":  # `--plugin=gate=ca`
            value = f"{option}={value}"
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        kept = 0 if _in_quotes(_line()) else max(incomplete.rfind(each) for each in ("=", ":")) + 1
        if kept and incomplete[kept - 1] in breaks and item.type == "plain":
            value = value[kept:]
        return f"{item.type},{value}"


def install() -> None:
    """Let click answer bash with this class."""
    add_completion_class(LineBashComplete, "bash")


def _line() -> str:
    """What stands before the cursor; bash counts bytes."""
    line = os.environ.get("COMP_LINE", "").encode()
    return line[: int(os.environ.get("COMP_POINT", len(line)))].decode(errors="ignore")


def _between_words(line: str) -> bool:
    return line[-1:].isspace() and not _in_quotes(line)


def _in_quotes(line: str) -> bool:
    """Whether the last quote is still open."""
    quote = ""
    for letter in line:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
    return bool(quote)
