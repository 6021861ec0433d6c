# SPDX-License-Identifier: MIT
# Completion of rhea-img's command line for bash. What there is to complete the
# program itself tells, in its help.

# The words of a help text that are commands.
_rhea_img_commands() {
    "$1" --help 2>/dev/null |
        sed -n 's/^  \([a-z][a-z-]*\)  .*/\1/p'
    echo help
}

# The options of a command, with "=" behind those that take it so; for dd its
# operands.
_rhea_img_options() {
    "$1" "$2" --help 2>/dev/null | sed '/^$/,$d' |
        grep -oE -- '(^|[[ |({])(--?[A-Za-z][A-Za-z-]*=?|[a-z]+=)' |
        sed 's/^[[ |({]//'
    echo --help
}

_rhea_img_formats() {
    "$1" --help 2>/dev/null | sed -n 's/^Supported formats: //p'
}

# The creation options of a format: the command, the format.
_rhea_img_creation() {
    "$1" "$2" ${3:+-f "$3"} -o help 2>/dev/null |
        sed -n 's/^  \([a-z_.-]*=\)<.*/\1/p'
}

# What follows -o: the part behind the last comma is completed.
_rhea_img_list() {
    local program=$1 command=$2 cur=$3 format="" i
    local list=${cur%"${cur##*,}"}

    for ((i = 2; i < cword; i++)); do
        case $command:${words[i - 1]} in
        create:-f | amend:-f | convert:-O | measure:-O | convert-inplace:-O)
            format=${words[i]}
            ;;
        esac
    done
    [ "$command" = amend ] || command=create
    mapfile -t COMPREPLY < <(compgen -P "$list" \
        -W "$(_rhea_img_creation "$program" "$command" "$format")" \
        -- "${cur##*,}")
    compopt -o nospace
}

_rhea_img() {
    local cur prev words cword
    _init_completion -n = 2>/dev/null || {
        cur=${COMP_WORDS[COMP_CWORD]}
        prev=${COMP_WORDS[COMP_CWORD - 1]}
        words=("${COMP_WORDS[@]}")
        cword=$COMP_CWORD
    }
    local program=${words[0]} command=${words[1]-}

    if [ "$cword" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen \
            -W "$(_rhea_img_commands "$program") --help --version" -- "$cur")
        return
    fi
    if [ "$command" = help ]; then
        mapfile -t COMPREPLY < <(compgen \
            -W "$(_rhea_img_commands "$program")" -- "$cur")
        return
    fi

    local values=""
    case $prev in
    -f | -F | -O) values=$(_rhea_img_formats "$program") ;;
    -t | -T) values="none writeback writethrough directsync unsafe" ;;
    -r) [ "$command" = check ] && values="leaks all" ;;
    -i) values="threads native io_uring" ;;
    -o)
        case $command in
        amend | convert | convert-inplace | create | measure)
            _rhea_img_list "$program" "$command" "$cur"
            return
            ;;
        esac
        ;;
    esac
    case $cur in
    --preallocation=*)
        values="--preallocation=off --preallocation=metadata"
        values+=" --preallocation=falloc --preallocation=full"
        ;;
    --output=*) values="--output=human --output=json" ;;
    --repair=*) values="--repair=leaks --repair=all" ;;
    --allow-loss=*)
        values="--allow-loss=snapshots --allow-loss=bitmaps"
        values+=" --allow-loss=extensions --allow-loss=backing-format"
        ;;
    esac
    if [ -n "$values" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur")
        return
    fi

    case $command:$cur in
    dd:if=* | dd:of=*)
        mapfile -t COMPREPLY < <(compgen -f -P "${cur%%=*}=" -- "${cur#*=}")
        ;;
    *:-* | dd:[a-z]*)
        mapfile -t COMPREPLY < <(compgen \
            -W "$(_rhea_img_options "$program" "$command")" -- "$cur")
        [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
        ;;
    *) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
}

complete -o filenames -F _rhea_img rhea-img
