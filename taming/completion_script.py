"""What lets a shell complete `taming`: its commands, their flags, and the names of configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")
_ZSH = (  # which completes as bash does, where its own completion has been started
    "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }",
    "autoload -U +X bashcompinit && bashcompinit",
)


def completion_script(
    shell: str, flags: Mapping[str, Sequence[str]], configs: Sequence[str]
) -> str:
    """The text that a shell, one of `SHELLS`, reads at its start.

    Args:
        flags: of every command.
        configs: names that may follow `--base` and `-b`.
    """
    return _fish(flags, configs) if shell == "fish" else _bash(flags, configs, zsh=shell == "zsh")


def _bash(flags: Mapping[str, Sequence[str]], configs: Sequence[str], *, zsh: bool) -> str:
    cases = [f"    {name}) words='{' '.join(own)}' ;;" for name, own in flags.items()]
    lines = [
        *(_ZSH if zsh else []),
        "_taming() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=',
        f"  local commands='{' '.join(flags)}'",
        '  if [ "$COMP_CWORD" -eq 1 ]; then words="$commands"; else',
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac; fi",
        f"""  case "$before" in --base|-b|--copy) words='{" ".join(configs)}' ;; esac""",
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _taming taming",
    ]
    return "\n".join(lines)


def _fish(flags: Mapping[str, Sequence[str]], configs: Sequence[str]) -> str:
    lines = [f"complete -c taming -n __fish_use_subcommand -f -a '{' '.join(flags)}'"]
    for name, own in flags.items():
        seen = f"complete -c taming -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{seen} -l {flag[2:]}" for flag in own if flag.startswith("--")]
        lines += [f"{seen} -s {flag[1:]}" for flag in own if not flag.startswith("--")]
        if "--base" in own:
            lines.append(f"{seen} -l base -s b -x -a '{' '.join(configs)}'")
    return "\n".join(lines)
