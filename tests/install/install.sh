#!/bin/sh
# SPDX-License-Identifier: MIT
# `make install PREFIX=DIR` puts programs, man pages, headers, both libraries
# and a pkg-config file under DIR, and a C program can be built from those
# alone and runs. Nothing is written outside DIR, and DESTDIR stages.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
unset MAKEFLAGS MAKELEVEL PKG_CONFIG_PATH LD_LIBRARY_PATH

fail() {
    echo "$*" >&2
    exit 1
}
has() { # FILE under the prefix, not empty
    [ -s "$prefix/$1" ] || fail "not installed: $1"
}

make -C "$RHEA_SOURCE" --no-print-directory install BUILD="$work/build" \
    MESON_OPTIONS=-Dtests=false PREFIX="$prefix" >"$work/log" 2>&1 || {
    cat "$work/log"
    fail "make install failed"
}

for program in rhea-img rhea-io rhea-trace; do
    has "bin/$program"
    has "share/man/man1/$program.1"
    has "share/bash-completion/completions/$program"
done
has lib/rhea/librhea-trace-plugin.so
has lib/librhea-image.a
has lib/librhea-image.so
has lib/pkgconfig/librhea-image.pc
for header in "$RHEA_SOURCE"/include/rhea/*.h; do
    has "include/rhea/${header##*/}"
done
version=$(PKG_CONFIG_PATH=$prefix/lib/pkgconfig \
    pkg-config --modversion librhea-image)
"$prefix/bin/rhea-img" --version | grep -qF "$version" ||
    fail "rhea-img --version does not name version $version"
"$prefix/bin/rhea-trace" report --version | grep -qF "$version" ||
    fail "rhea-trace report --version does not name version $version"

# The examples, by pkg-config alone, once with each library.
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
cd "$work"
# shellcheck disable=SC2046 # lists of words
for name in print-map convert-in-place; do
    cc -std=c99 -Wall -Wextra -Werror -pedantic -o "$name" \
        "$RHEA_SOURCE/examples/$name.c" \
        $(pkg-config --cflags --libs librhea-image) \
        -Wl,-rpath,"$prefix/lib"
    cc -o "$name-static" "$RHEA_SOURCE/examples/$name.c" -static \
        $(pkg-config --static --cflags --libs librhea-image)
done
ldd print-map | grep -qF "$prefix/lib/librhea-image.so" ||
    fail "print-map does not use the installed shared library"

# They do what they say.
qemu-img create -q -f qcow2 image 1M
qemu-io -f qcow2 -c 'write -q -P 7 64k 128k' image
cp image image.before
for map in ./print-map ./print-map-static; do
    $map image >map
    awk '{ total += $2; if ($3 == "data") data += $2 }
         END { exit !(total == 1048576 && data == 131072) }' map || {
        cat map
        fail "$map does not show 128 KiB of data in 1 MiB"
    }
done
./convert-in-place -n qcow2 qed image | grep -qF 'qcow2 to qed: 131072 bytes'
cmp image image.before || fail "a dry run changed the image"
./convert-in-place qcow2 qed image | grep -qx done
qemu-img check -q -f qed image
qemu-io -f qed -c 'read -P 7 64k 128k' -c 'read -P 0 192k 832k' image |
    grep -q 'Pattern verification failed' && fail "the contents changed"
./convert-in-place-static qed qcow2 image | grep -qx done
qemu-img check -q -f qcow2 image
if ./convert-in-place qed qcow2 missing 2>message; then
    fail "a missing file was converted"
fi
grep -q missing message || fail "the message does not name the file"

# A staged installation names the place where it will end up.
make -C "$RHEA_SOURCE" --no-print-directory install BUILD="$work/build" \
    MESON_OPTIONS=-Dtests=false PREFIX=/opt/rhea DESTDIR="$work/stage" \
    >"$work/log" 2>&1 || {
    cat "$work/log"
    fail "make install DESTDIR= failed"
}
[ -x "$work/stage/opt/rhea/bin/rhea-img" ] || fail "DESTDIR is not respected"
grep -qx 'prefix=/opt/rhea' \
    "$work/stage/opt/rhea/lib/pkgconfig/librhea-image.pc" ||
    fail "the staged pkg-config file names another prefix"
