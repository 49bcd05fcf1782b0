"""What lets a shell complete `taming`: its commands, what may follow each, and names of configs and
the like."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from taming.command_line import Parser, parser_of

SHELLS = ("bash", "zsh", "fish")
YAML_FLAGS = ("--base", "-b")
CONFIG_FLAGS = (*YAML_FLAGS, "configs --copy")
MODEL_FLAGS = ("--resume", "-r")
_ZSH = (  # which completes as bash does, where its own completion has been started
    "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }",
    "autoload -U +X bashcompinit && bashcompinit",
)
_FILES_IN_ZSH = (  # whose `compgen` gives all words, whatever is typed
    '  if [ -n "$start" ] && [ -z "${(M)COMPREPLY[@]:#$start$word*}" ]; then',
    '    local -a found; found=("$word"*(N)); COMPREPLY=("$start"${^found[@]})',
    "  fi",
)


def completion_script(
    shell: str,
    words: Mapping[str, Sequence[str]],
    values: Mapping[str, Sequence[str]],
    or_paths: Collection[str] = (),
    *,
    takes: Mapping[str, Mapping[str, int]],
) -> str:
    """The text that a shell, one of `SHELLS`, reads at its start.

    Args:
        words: of every command, see `words_of`.
        values: names, one or several of which may follow flags, by `"FLAG"` of any command or
            `"COMMAND FLAG"`.
        or_paths: those of `values` in whose place a file or folder may be named as well.
        takes: of every command how many values follow its flags, see `values_behind`. Where a value
            is due that has no names, the shell offers files.
    """
    if shell == "fish":
        return _fish(words, values, or_paths, takes)
    return _bash(words, values, or_paths, takes, zsh=shell == "zsh")


def words_of(main: Callable[[Sequence[str]], object]) -> list[str]:
    """The flags of a command's parser, and the words among which it has the user choose, such as
    subcommands, with the flags of their parsers; none if it has no parser."""
    parsers = _parsers_of(main)
    return sorted({word for p in parsers for word in (*_places(p), *p.flags())})


def values_behind(main: Callable[[Sequence[str]], object]) -> dict[str, int]:
    """How many values follow each flag of a command: 0, 1, or 2 for several."""
    return dict(each for parser in _parsers_of(main) for each in parser.flags().items())


def choices_of(main: Callable[[Sequence[str]], object]) -> dict[str, list[str]]:
    """The words among which a command's flags have the user choose, by flag."""
    found = [each for parser in _parsers_of(main) for each in parser.choices().items()]
    return {flag: words for flag, words in found if flag.startswith("-")}


def _parsers_of(main: Callable[[Sequence[str]], object]) -> list[Parser]:
    """A command's parser and those of its subcommands; none if it has no parser."""
    parser = parser_of(main)
    if parser is None:
        return []
    below = [parser_of(main, word) for word in _places(parser)]
    return [parser, *(one for one in below if one)]


def _places(parser: Parser) -> list[str]:
    named = parser.choices().items()
    return [word for name, words in named if not name.startswith("-") for word in words]


def _bash(
    words: Mapping[str, Sequence[str]],
    values: Mapping[str, Sequence[str]],
    or_paths: Collection[str],
    takes: Mapping[str, Mapping[str, int]],
    *,
    zsh: bool,
) -> str:
    """A function that offers words of the command or, where the last flag before the cursor still
    takes a value, those that are known of it, or none.

    Where nothing begins as is typed, the shell offers files; so names that may be paths are offered
    when their first letter is there.

    `--base=name` is one word in zsh, whose own completion of files does not look into it, and three
    in bash.
    """
    cases = [
        f"    {name}) words='{' '.join(own)}'; {_counts(takes[name])} ;;"
        for name, own in words.items()
    ]
    unless = '; [ -n "$word" ] || words='
    keys = {(f"'{key}'" if " " in key else f"*' {key}'"): key for key in values}
    after = [
        f"    {key}) words='{' '.join(values[name])}'{unless * (name in or_paths)} ;;"
        for key, name in keys.items()
    ]
    lines = [
        *(_ZSH if zsh else []),
        "_taming() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" flag= start= place words=',
        "  local one= several= number=",
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
        '  if [ -n "$flag" ]; then',
        "    number=$((COMP_CWORD - place))",
        '    [ "${COMP_WORDS[place + 1]}" = "=" ] && [ "$number" -gt 1 ] && number=$((number - 1))',
        '    [ -n "$start" ] && number=1',
        '    case "$several$one" in',
        '      *" $flag "*"/"*) words= ;;',
        '      *"/"*" $flag "*) [ "$number" -eq 1 ] && words= || flag= ;;',
        "      *) flag= ;;",
        "    esac",
        "  fi",
        '  case "${COMP_WORDS[1]} $flag" in',
        *after,
        "  esac",
        '  COMPREPLY=($(compgen -P "$start" -W "$words" -- "$word"))',
        *(_FILES_IN_ZSH if zsh else []),
        "}",
        "complete -o default -F _taming taming",
    ]
    return "\n".join(lines)


def _counts(takes: Mapping[str, int]) -> str:
    """The flags that take several values, and those that take one, for `_bash`."""
    several, one = ([f for f, count in takes.items() if count == n] for n in (2, 1))
    return f"several=' {' '.join(several)} /'; one=' {' '.join(one)} '"


def _fish(
    words: Mapping[str, Sequence[str]],
    values: Mapping[str, Sequence[str]],
    or_paths: Collection[str],
    takes: Mapping[str, Mapping[str, int]],
) -> str:
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
        if choices:  # of which one is enough; then come files
            yet = f"{is_it}; and not __fish_seen_subcommand_from {' '.join(choices)}"
            lines.append(f"complete -c taming -n '{yet}' -f -a '{' '.join(choices)}'")
        for flag in (word for word in own if word.startswith("-")):
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            key = flag if flag in calls else f"{name} {flag}"
            found, only = calls.get(key), "" if key in (*or_paths, *YAML_FLAGS) else "-f "
            line = f"{seen} {option}" + (" -r" if takes[name].get(flag) else "")
            lines.append(line + (f" {only}-a '({found})'" if found else ""))
            if found and takes[name][flag] > 1:
                further = f"{is_it}; and __taming_after {flag}"
                lines.append(f"complete -c taming -n '{further}' {only}-a '({found})'")
    return "\n".join(lines)
