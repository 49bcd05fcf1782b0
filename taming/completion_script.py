"""What lets a shell complete `taming`: its commands, what may follow each, and configs' names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from taming.command_line import parser_of

SHELLS = ("bash", "zsh", "fish")
CONFIG_FLAGS = ("--base", "-b", "--copy")
_ZSH = (  # which completes as bash does, where its own completion has been started
    "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }",
    "autoload -U +X bashcompinit && bashcompinit",
)


def completion_script(
    shell: str, words: Mapping[str, Sequence[str]], configs: Sequence[str]
) -> str:
    """The text that a shell, one of `SHELLS`, reads at its start.

    Args:
        words: of every command, see `words_of`.
        configs: names that may follow the flags of `CONFIG_FLAGS`.
    """
    return _fish(words, configs) if shell == "fish" else _bash(words, configs, zsh=shell == "zsh")


def words_of(main: Callable[[Sequence[str]], object]) -> list[str]:
    """The flags of a command's parser, and the words among which it has the user choose, such as
    subcommands, with the flags of their parsers; none if it has no parser."""
    parser = parser_of(main)
    if parser is None:
        return []
    choices = parser.choices()
    below = [parser_of(main, word) for word in choices]
    return sorted({*choices, *parser.flags(), *(f for p in below if p for f in p.flags())})


def _bash(words: Mapping[str, Sequence[str]], configs: Sequence[str], *, zsh: bool) -> str:
    cases = [f"    {name}) words='{' '.join(own)}' ;;" for name, own in words.items()]
    lines = [
        *(_ZSH if zsh else []),
        "_taming() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=',
        f"  local commands='{' '.join(words)}'",
        '  if [ "$COMP_CWORD" -eq 1 ]; then words="$commands"; else',
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac; fi",
        f"""  case "$before" in {"|".join(CONFIG_FLAGS)}) words='{" ".join(configs)}' ;; esac""",
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _taming taming",
    ]
    return "\n".join(lines)


def _fish(words: Mapping[str, Sequence[str]], configs: Sequence[str]) -> str:
    lines = [
        f"function __taming_configs; string split ' ' '{' '.join(configs)}'; end",
        f"complete -c taming -n __fish_use_subcommand -f -a '{' '.join(words)}'",
    ]
    for name, own in words.items():
        seen = f"complete -c taming -n '__fish_seen_subcommand_from {name}'"
        choices = [word for word in own if not word.startswith("-")]
        lines += [f"{seen} -f -a '{' '.join(choices)}'"] if choices else []
        for flag in (word for word in own if word.startswith("-")):
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            after = " -x -a '(__taming_configs)'" if flag in CONFIG_FLAGS else ""
            lines.append(f"{seen} {option}{after}")
    return "\n".join(lines)
