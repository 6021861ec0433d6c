# SPDX-License-Identifier: MIT
# Completion of rhea-img's command line for bash.

_rhea_img() {
    local cur prev words cword
    _init_completion -n = 2>/dev/null || {
        cur=${COMP_WORDS[COMP_CWORD]}
        prev=${COMP_WORDS[COMP_CWORD - 1]}
        words=("${COMP_WORDS[@]}")
        cword=$COMP_CWORD
    }
    local commands="amend bitmap check compare convert convert-inplace create help info map measure resize snapshot"
    local formats="luks qcow2 qed raw"
    local command=${words[1]-}

    if [ "$cword" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands --help --version" \
            -- "$cur")
        return
    fi
    if [ "$command" = help ]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur")
        return
    fi

    local values="" options=""
    case $prev in
    -f | -F | -O | --format) values=$formats ;;
    -t | -T) values="none writeback writethrough directsync unsafe" ;;
    -r | --repair) [ "$command" = check ] && values="leaks all" ;;
    esac
    case $cur in
    --preallocation=*)
        values="--preallocation=off --preallocation=metadata"
        values+=" --preallocation=falloc --preallocation=full"
        ;;
    --output=*) values="--output=human --output=json" ;;
    --allow-loss=*)
        values="--allow-loss=snapshots --allow-loss=bitmaps"
        values+=" --allow-loss=extensions --allow-loss=backing-format"
        ;;
    esac
    if [ -n "$values" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur")
        return
    fi

    case $command in
    amend) options="-o -f -t -p -q --force --object --image-opts" ;;
    measure)
        options="-O -o -f -l -U --size= --output= --object --image-opts"
        ;;
    resize)
        options="-f -q --shrink --preallocation= --object --image-opts"
        ;;
    bitmap)
        options="--add -g --remove --clear --enable --disable --merge -b -F"
        options+=" -f --object --image-opts"
        ;;
    check) options="-f --format -r --repair --output= -q -p -T -U" ;;
    compare) options="-f -F -s -p -q -T -U" ;;
    convert)
        options="-f -O -o -B -F -c -p -q -n -S -m -W -t -T -U --target-is-zero"
        ;;
    convert-inplace)
        options="-f -O -o -p -q -n --dry-run --json --allow-loss="
        ;;
    create) options="-f -b -F -u -o -q" ;;
    info) options="-f --format --output= --backing-chain -U" ;;
    snapshot) options="-l -c -a -d -q -U --object --image-opts" ;;
    map) options="-f --format --output= -s -l -U" ;;
    esac
    case $cur in
    -*)
        mapfile -t COMPREPLY < <(compgen -W "$options --help" -- "$cur")
        [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
        ;;
    *) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
}

complete -o filenames -F _rhea_img rhea-img
