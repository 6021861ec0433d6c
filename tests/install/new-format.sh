#!/bin/sh
# SPDX-License-Identifier: MIT
# scripts/new-format begins a format that builds without a warning, is probed,
# and is read; a second one of the same name is refused.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "$*" >&2
    exit 1
}

cd "$RHEA_SOURCE"
cp -r include src tools docs scripts tests bench meson.build \
    meson_options.txt .clang-format "$work/"
cd "$work"
scripts/new-format vdx 'Example disks' >/dev/null
{ meson setup build -Dtests=false -Dwerror=true -Doptimization=0 &&
    ninja -C build tools/rhea-img/rhea-img; } >log 2>&1 || {
    cat log
    fail "the new format does not build"
}
rhea=build/tools/rhea-img/rhea-img

# A header with a magic and the size 1024, then the contents.
printf 'VDX\0\0\0\0\0\0\004\0\0\0\0\0\0' >image
truncate -s 512 image
head -c 1024 /dev/urandom >contents
cat contents >>image
"$rhea" info image | grep -qx 'file format: vdx' || fail "it is not probed"
"$rhea" convert -O raw image copy
cmp contents copy || fail "it is not read"

# Its header says more than its file holds.
truncate -s 1535 image
if "$rhea" info -f vdx image >/dev/null 2>&1; then
    fail "a short file is opened"
fi
if scripts/new-format vdx 'Example disks' >/dev/null 2>&1; then
    fail "a format was begun twice"
fi
[ "$(grep -c "'vdx'" meson.build)" = 1 ] || fail "the list is not right"
