# SPDX-License-Identifier: MIT
# Completion of rhea-trace's command lines for bash. Which options there are the
# program itself tells, in its help.

_rhea_trace() {
    local cur prev words
    _init_completion -n =: 2>/dev/null || {
        cur=${COMP_WORDS[COMP_CWORD]}
        prev=${COMP_WORDS[COMP_CWORD - 1]}
        words=("${COMP_WORDS[@]}")
    }
    local program=${words[0]} command="" values=""

    case ${words[1]} in
    record | report) [ "${#words[@]}" -gt 2 ] && command=${words[1]} ;;
    esac
    case $prev in
    -w | --way) values="auto stub hardware plugin" ;;
    -a | --arch) values="auto x86-64 i386 i8086" ;;
    --) values="qemu-system-x86_64 qemu-system-i386" ;;
    esac
    if [ -n "$values" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur")
        return
    fi
    case $cur in
    -*)
        # shellcheck disable=SC2086 # there may be none
        mapfile -t COMPREPLY < <(compgen -W "$("$program" $command --help \
            2>/dev/null | grep -oE -- '^  -[a-zA-Z], --[a-z-]+' |
            tr -d ' ' | tr ',' '\n')" -- "$cur")
        ;;
    *)
        mapfile -t COMPREPLY < <(
            [ "${#words[@]}" = 2 ] && compgen -W "record report" -- "$cur"
            compgen -f -- "$cur"
        )
        ;;
    esac
}

complete -o filenames -F _rhea_trace rhea-trace
