# SPDX-License-Identifier: MIT
# A thin front of Meson and scripts/. `make help` lists what there is.

BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
MESON_OPTIONS ?=
FUZZ_SECONDS ?= 600
export FUZZ_SECONDS

.PHONY: all build help demo check tsan crash long trace-suite fuzz bench lint format install clean

all: build

help:
	@echo "make                     build into $(BUILD)/"
	@echo "make demo                convert a real image in place, and look at it"
	@echo "make check               run the tests, plain and under sanitizers"
	@echo "make tsan                run the tests of many threads, looking for races"
	@echo "make crash               judge at least 20,000 crash states"
	@echo "make long                all tests that take too long for make check"
	@echo "make trace-suite         gdb's own tests of tracepoints, with rhea-trace"
	@echo "make fuzz                fuzz each target for FUZZ_SECONDS=$(FUZZ_SECONDS)"
	@echo "make bench               measure against peers and limits"
	@echo "make lint                format, static analysis, man pages"
	@echo "make install PREFIX=DIR  programs, library, headers, man pages"
	@echo "make clean               remove the build folders"

build:
	@scripts/install-deps build
	@scripts/configure $(BUILD) $(MESON_OPTIONS)
	ninja -C $(BUILD)

demo:
	@scripts/demo

check:
	@scripts/check

tsan:
	@scripts/check --tsan

crash: build
	@scripts/install-deps check
	meson test -C $(BUILD) --no-rebuild --setup long --suite crash \
	    --print-errorlogs --verbose

long: build
	@scripts/install-deps check
	meson test -C $(BUILD) --no-rebuild --setup long --suite long \
	    --print-errorlogs

trace-suite: build
	@scripts/gdb-trace-suite

fuzz:
	@scripts/fuzz

bench:
	@scripts/bench

lint:
	@scripts/lint

format:
	@scripts/format

install:
	@scripts/install-deps build
	@scripts/configure $(BUILD) $(MESON_OPTIONS) \
	    --prefix=$(abspath $(PREFIX)) -Dlibdir=lib -Dmandir=share/man
	ninja -C $(BUILD)
	meson install -C $(BUILD) --no-rebuild --quiet \
	    $(if $(DESTDIR),--destdir=$(abspath $(DESTDIR)))

clean:
	rm -rf build build-asan build-tsan build-fuzz build-clang
