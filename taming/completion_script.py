"""What lets a shell complete `taming`: its commands, what may follow each, and names of configs and
the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from taming.command_line import parser_of

SHELLS = ("bash", "zsh", "fish")
CONFIG_FLAGS = ("--base", "-b", "configs --copy")
_ZSH = (  # which completes as bash does, where its own completion has been started
    "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }",
    "autoload -U +X bashcompinit && bashcompinit",
)


def completion_script(
    shell: str, words: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[str]]
) -> str:
    """The text that a shell, one of `SHELLS`, reads at its start.

    Args:
        words: of every command, see `words_of`.
        values: names, one or several of which may follow flags, by `"FLAG"` of any command or
            `"COMMAND FLAG"`.
    """
    return _fish(words, values) if shell == "fish" else _bash(words, values, zsh=shell == "zsh")


def words_of(main: Callable[[Sequence[str]], object]) -> list[str]:
    """The flags of a command's parser, and the words among which it has the user choose, such as
    subcommands, with the flags of their parsers; none if it has no parser."""
    parser = parser_of(main)
    if parser is None:
        return []
    choices = parser.choices()
    below = [parser_of(main, word) for word in choices]
    return sorted({*choices, *parser.flags(), *(f for p in below if p for f in p.flags())})


def _bash(
    words: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[str]], *, zsh: bool
) -> str:
    """A function that offers words of the command, or values of the last flag before the cursor.

    `--base=name` is one word in zsh, and three in bash.
    """
    cases = [f"    {name}) words='{' '.join(own)}' ;;" for name, own in words.items()]
    keys = {(f"'{key}'" if " " in key else f"*' {key}'"): key for key in values}
    after = [f"    {key}) words='{' '.join(values[name])}' ;;" for key, name in keys.items()]
    lines = [
        *(_ZSH if zsh else []),
        "_taming() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" flag= start= place words=',
        f"  local commands='{' '.join(words)}'",
        '  if [ "$COMP_CWORD" -eq 1 ]; then words="$commands"; else',
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac; fi",
        '  case "$word" in',
        '    --*=*) flag="${word%%=*}"; start="$flag="; word="${word#*=}" ;;',
        "    -*) ;;",
        "    *) for ((place = COMP_CWORD - 1; place > 1; place--)); do",
        '         case "${COMP_WORDS[place]}" in -*) flag="${COMP_WORDS[place]}"; break ;; esac',
        "       done ;;",
        "  esac",
        '  [ "$word" = "=" ] && word=',
        '  case "${COMP_WORDS[1]} $flag" in',
        *after,
        "  esac",
        '  COMPREPLY=($(compgen -P "$start" -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _taming taming",
    ]
    return "\n".join(lines)


def _fish(words: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[str]]) -> str:
    lines = [
        "function __taming_after",  # whether the last flag before the cursor is one of these
        "    set -l flags (string match -r '^-[^=]*' -- (commandline -opc))",
        '    contains -- "$flags[-1]" $argv',
        "end",
        f"complete -c taming -n __fish_use_subcommand -f -a '{' '.join(words)}'",
    ]
    calls = {key: f"__taming_values_{number}" for number, key in enumerate(values)}
    for key, call in calls.items():
        lines.append(f"function {call}; string split ' ' '{' '.join(values[key])}'; end")
    for name, own in words.items():
        is_it = f"__fish_seen_subcommand_from {name}"
        seen = f"complete -c taming -n '{is_it}'"
        choices = [word for word in own if not word.startswith("-")]
        lines += [f"{seen} -f -a '{' '.join(choices)}'"] if choices else []
        for flag in (word for word in own if word.startswith("-")):
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            found = calls.get(flag) or calls.get(f"{name} {flag}")
            lines.append(f"{seen} {option}" + (f" -x -a '({found})'" if found else ""))
            if found:  # further ones
                further = f"{is_it}; and __taming_after {flag}"
                lines.append(f"complete -c taming -n '{further}' -f -a '({found})'")
    return "\n".join(lines)
