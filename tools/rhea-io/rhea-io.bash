# SPDX-License-Identifier: MIT
# Completion of rhea-io's command line for bash. Its commands and options the
# program itself tells, in its help.

_rhea_io() {
    local cur prev words
    _init_completion -n = 2>/dev/null || {
        cur=${COMP_WORDS[COMP_CWORD]}
        prev=${COMP_WORDS[COMP_CWORD - 1]}
        words=("${COMP_WORDS[@]}")
    }
    local program=${words[0]} values=""

    case $prev in
    -f | --format) values="raw qcow2 qed luks" ;;
    -t | --cache) values="none writeback writethrough directsync unsafe" ;;
    -d | --discard) values="unmap ignore" ;;
    -i | --aio) values="threads native io_uring" ;;
    -c | --cmd)
        values=$("$program" -c help 2>/dev/null |
            sed -n 's/^\([a-z_]*\) .*-- .*/\1/p')
        ;;
    esac
    if [ -n "$values" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur")
        return
    fi
    case $cur in
    -*)
        mapfile -t COMPREPLY < <(compgen -W "$("$program" --help 2>/dev/null |
            grep -oE -- '(^|[ ,])--?[A-Za-z][a-z-]*' | tr -d ' ,')" -- "$cur")
        ;;
    *) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
}

complete -o filenames -F _rhea_io rhea-io
