# Platter: plain GNU make.  Everything made goes under build/.
#   make            every binary and library        make demo    boot a guest
#   make check      install what is needed, test    make bench   docs/performance.md
#   make deps       install what is needed          make check-layers  who includes whom
#   make install    DESTDIR= PREFIX=/usr/local      T="tests/..."  only these tests
#   SAN=1           ASan+UBSan, under build/san/    DEVELOPER=1  warnings are errors

.DEFAULT_GOAL := all
PREFIX ?= /usr/local
ifeq ($(origin CC),default)
CC := gcc
endif
PKG_CONFIG ?= pkg-config
CFLAGS ?= -O2 -g
B := build$(if $(SAN),/san)

base_flags := -std=gnu11 -D_GNU_SOURCE -I. -I$(B) -fPIC -MMD -MP -pthread -fno-strict-aliasing
warn_flags := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wno-unused-parameter
ifdef DEVELOPER
warn_flags += -Wconversion -Wno-sign-conversion -Werror
endif
ifdef SAN
base_flags += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
ld_san := -fsanitize=address,undefined
endif

have = $(shell $(PKG_CONFIG) --exists $(1) 2>/dev/null && echo y)
HAVE_URING ?= $(call have,liburing)
HAVE_DEFLATE ?= $(call have,libdeflate)
HAVE_GCRYPT ?= $(call have,libgcrypt)
HAVE_BZIP2 ?= $(shell printf '\#include <bzlib.h>\n' | $(CC) -E -xc - >/dev/null 2>&1 && echo y)
pkgs := jansson zlib libzstd $(if $(HAVE_URING),liburing) $(if $(HAVE_DEFLATE),libdeflate) $(if $(HAVE_GCRYPT),libgcrypt)
base_flags += $(if $(HAVE_BZIP2),-DHAVE_BZIP2) $(if $(HAVE_URING),-DHAVE_URING) $(if $(HAVE_DEFLATE),-DHAVE_DEFLATE) $(if $(HAVE_GCRYPT),-DHAVE_GCRYPT)
lib_cflags := $(shell $(PKG_CONFIG) --cflags $(pkgs) 2>/dev/null)
lib_libs := $(shell $(PKG_CONFIG) --libs $(pkgs) 2>/dev/null) $(if $(HAVE_BZIP2),-lbz2) -pthread -ldl

lib_src := $(wildcard block/*.c formats/*.c formats/*/*.c protocols/*.c)
img_src := $(wildcard img/*.c)
run_src := $(wildcard vmm-shim/*.c)
obj = $(patsubst %.c,$(B)/%.o,$(1))

comma := ,
# protocols/NAME/*.c -> build/modules/platter-NAME.so, loaded when its scheme is used
module_pkgs_nfs := libnfs
module_pkgs_iscsi := libiscsi
module_pkgs_gluster := glusterfs-api
module_pkgs_nbd := libnbd
module_pkgs_http := libcurl
module_names := $(foreach m,$(patsubst protocols/%/,%,$(wildcard protocols/*/)),$(if $(call have,$(module_pkgs_$(m))),$(m)))
modules := $(patsubst %,$(B)/modules/platter-%.so,$(module_names))
$(foreach m,$(module_names),$(eval $(call obj,$(wildcard protocols/$(m)/*.c)): lib_cflags += $(shell $(PKG_CONFIG) --cflags $(module_pkgs_$(m)))))
# Programs export the core to the modules they load.
export_core := -rdynamic

# tools/NAME.c and tools/NAME_*.c -> build/platter-NAME
tool_bins := $(patsubst tools/%.c,$(B)/platter-%,$(filter-out $(wildcard tools/*_*.c),$(wildcard tools/*.c)))
bins := $(if $(wildcard img/main.c),$(B)/platter-img) $(if $(wildcard vmm-shim/main.c),$(B)/platter-run) $(tool_bins)
all: $(bins) $(B)/libplatter.a $(B)/libplatter.so $(modules) $(B)/manuals.stamp

# Says what is missing before the compiler does.
have-deps:
	@tools/deps.sh --check

$(B)/%.o: %.c | have-deps
	@mkdir -p $(@D)
	$(CC) $(base_flags) $(warn_flags) $(lib_cflags) $(CFLAGS) -c -o $@ $<

$(B)/libplatter.a: $(call obj,$(lib_src))
	@rm -f $@
	$(AR) rcs $@ $^
$(B)/libplatter.so: $(call obj,$(lib_src))
	$(CC) -shared $(ld_san) $(LDFLAGS) -Wl,-soname,libplatter.so.0 -o $@ $^ $(lib_libs)
# The sanitizers intercept xdr_*(); only a program that has them itself lets them
# find the real ones, which libgfapi calls.
san_libs = $(if $(and $(SAN),$(filter gluster,$(module_names))),-Wl$(comma)--no-as-needed -l:libtirpc.so.3)
# All of the core goes into a program: modules find it there.
link_core = $(filter-out %.a,$^) -Wl,--whole-archive $(filter %.a,$^) -Wl,--no-whole-archive $(lib_libs) $(san_libs)
$(B)/platter-img: $(call obj,$(img_src)) $(B)/libplatter.a
	$(CC) $(ld_san) $(export_core) $(LDFLAGS) -o $@ $(link_core)
$(B)/platter-run: $(call obj,$(run_src)) $(B)/libplatter.a
	$(CC) $(ld_san) $(export_core) $(LDFLAGS) -o $@ $(link_core)
.SECONDEXPANSION:
$(modules): $(B)/modules/platter-%.so: $$(call obj,$$(wildcard protocols/$$*/*.c))
	@mkdir -p $(@D)
	$(CC) -shared $(ld_san) $(LDFLAGS) -o $@ $^ $(shell $(PKG_CONFIG) --libs $(module_pkgs_$*)) -pthread
$(tool_bins): $(B)/platter-%: $$(call obj,$$(wildcard tools/$$*.c tools/$$*_*.c)) $(B)/libplatter.a
	$(CC) $(ld_san) $(export_core) $(LDFLAGS) -o $@ $(link_core)

# build/man/*.1 and build/completions/*, from what --help says.
$(B)/manuals.stamp: $(bins) tools/manuals tools/man.awk tools/completion.awk
	tools/manuals $(B) $(B)
	@touch $@

# The DSDT as a C array; iasl's comments name paths and times, so they go.
$(B)/vmm-shim/dsdt.h: vmm-shim/dsdt.asl
	@mkdir -p $(@D)
	iasl -we -vs -p $(@D)/dsdt -tc $< > $(@D)/dsdt.log || { cat $(@D)/dsdt.log; exit 1; }
	sed -n 's/^unsigned char/static const unsigned char/;/^static/,/^}/{s, */\*.*\*/,,;p;}' $(@D)/dsdt.hex > $@
$(B)/vmm-shim/acpi.o: $(B)/vmm-shim/dsdt.h

# One unit test program a file: tests/unit/NAME.c -> build/tests/unit/NAME
unit_src := $(wildcard tests/unit/*.c)
unit_bin := $(patsubst %.c,$(B)/%,$(unit_src))
$(B)/tests/unit/%: tests/unit/%.c $(B)/libplatter.a
	@mkdir -p $(@D)
	$(CC) $(base_flags) $(warn_flags) $(lib_cflags) $(CFLAGS) $(ld_san) -o $@ $< $(UNIT_EXTRA_$*) $(B)/libplatter.a $(lib_libs) -lcmocka
# The runner's devices without its main(), and the guest they are tested with.
vmm_objs := $(call obj,$(filter-out vmm-shim/main.c,$(run_src)) $(wildcard tests/unit/virtio/*.c))
$(filter $(B)/tests/unit/virtio_% $(B)/tests/unit/run_%,$(unit_bin)): $(B)/tests/unit/%: tests/unit/%.c $(vmm_objs) $(B)/libplatter.a
	@mkdir -p $(@D)
	$(CC) $(base_flags) $(warn_flags) $(lib_cflags) $(CFLAGS) $(ld_san) -o $@ $< $(vmm_objs) $(B)/libplatter.a $(lib_libs) -lcmocka
# Programs that script tests run: tests/crash/NAME.c -> build/tests/crash/NAME
helper_bin := $(patsubst %.c,$(B)/%,$(wildcard tests/crash/*.c tests/fuzz/*.c tests/qcow2/*.c))
$(helper_bin): $(B)/tests/%: tests/%.c $(B)/libplatter.a
	@mkdir -p $(@D)
	$(CC) $(base_flags) $(warn_flags) $(lib_cflags) $(CFLAGS) $(ld_san) -o $@ $< $(B)/libplatter.a $(lib_libs)
# tests/unit/file_place.h makes these calls fail.
UNIT_EXTRA_file := $(addprefix -Wl$(comma)--wrap=,preadv pwritev preadv2 fdatasync close fallocate \
    posix_fallocate lseek open $(if $(HAVE_URING),io_uring_queue_init_params))
UNIT_EXTRA_file_open := $(UNIT_EXTRA_file)
UNIT_EXTRA_walls := $(call obj,img/walls.c)
$(B)/tests/unit/walls: $(UNIT_EXTRA_walls)
# It loads protocol modules, where tests/net/scribble.t runs it.
UNIT_EXTRA_scribble = $(export_core) -Wl,--whole-archive $(B)/libplatter.a -Wl,--no-whole-archive $(san_libs)

unit: $(unit_bin) $(helper_bin)

# libFuzzer, an hour unless FUZZ_TIME says otherwise: make fuzz FUZZ=qcow2
FUZZ ?= qcow2
FUZZ_TIME ?= 3600
fuzz:
	$(MAKE) B=build/fuzz CC=clang build/fuzz/libplatter.a \
	    CFLAGS="-O1 -g -fsanitize=fuzzer-no-link,address,undefined"
	@mkdir -p build/fuzz/corpus/$(FUZZ)
	clang $(base_flags) -DFUZZ_LIBFUZZER $(lib_cflags) -O1 -g -fsanitize=fuzzer,address,undefined \
	    -o build/fuzz/$(FUZZ) tests/fuzz/$(FUZZ).c build/fuzz/libplatter.a $(lib_libs)
	python3 tests/fuzz/corpus.py $(FUZZ) build/fuzz/corpus/$(FUZZ) >/dev/null
	build/fuzz/$(FUZZ) -max_len=65536 -timeout=10 -rss_limit_mb=2048 -max_total_time=$(FUZZ_TIME) \
	    build/fuzz/corpus/$(FUZZ) $(wildcard tests/fuzz/found/$(FUZZ))

# The same for a hostile guest: rings, registers, configuration space.
fuzz_vmm := $(patsubst $(B)/%,build/fuzz/%,$(vmm_objs))
fuzz_vmm := $(filter build/fuzz/tests/% %/mem.o %/pci.o %/msix.o %/virtqueue.o %/virtio.o \
    %/virtio_pci.o %/virtio_blk.o,$(fuzz_vmm))
fuzz-virtqueue:
	$(MAKE) B=build/fuzz CC=clang build/fuzz/libplatter.a $(fuzz_vmm) \
	    CFLAGS="-O1 -g -fsanitize=fuzzer-no-link,address,undefined"
	@mkdir -p build/fuzz/corpus/virtqueue
	clang $(base_flags) -DFUZZ_LIBFUZZER $(lib_cflags) -O1 -g -fsanitize=fuzzer,address,undefined \
	    -o build/fuzz/virtqueue tests/unit/virtio_fuzz.c $(fuzz_vmm) build/fuzz/libplatter.a \
	    $(lib_libs) -lcmocka
	build/fuzz/virtqueue -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
	    -max_total_time=$(FUZZ_TIME) build/fuzz/corpus/virtqueue

deps:
	@tools/deps.sh

parallel = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))
# The build starts anew after deps: what pkg-config finds may have changed.
check: deps
	@tests/oracle.sh && tests/kernel.sh
	$(MAKE) $(parallel) all unit
	B=$(B) tests/run.sh $(T)

check-layers:
	@tools/check-layers

demo: deps
	$(MAKE) $(parallel) all
	@B=$(B) tools/demo.sh

# Speed bars against qemu-img 10 -> docs/performance.md; BENCH="-k compare -r 3"
bench: deps
	@tests/oracle.sh
	$(MAKE) $(parallel) all
	B=$(B) tools/bench.py $(BENCH)

bindir := $(DESTDIR)$(PREFIX)/bin
libdir := $(DESTDIR)$(PREFIX)/lib
incdir := $(DESTDIR)$(PREFIX)/include/platter
mandir := $(DESTDIR)$(PREFIX)/share/man/man1
compdir := $(DESTDIR)$(PREFIX)/share/bash-completion/completions
install: all
	install -d $(bindir) $(libdir) $(incdir)
	install $(bins) $(bindir)
	$(if $(modules),install -d $(libdir)/platter && install -m 644 $(modules) $(libdir)/platter)
	install -m 644 $(B)/libplatter.a $(libdir)
	install -m 644 $(B)/libplatter.so $(libdir)/libplatter.so.0
	ln -sf libplatter.so.0 $(libdir)/libplatter.so
	install -m 644 block/block.h $(incdir)
	install -d $(libdir)/pkgconfig
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: platter' 'Description: disk images and the storage below them' \
	    'Version: $(shell sed -n 's/.*PLATTER_VERSION "\(.*\)"/\1/p' block/block.h)' \
	    'Cflags: -I$${prefix}/include' 'Libs: -L$${prefix}/lib -lplatter' \
	    'Libs.private: $(lib_libs)' > $(libdir)/pkgconfig/platter.pc
	install -d $(mandir) $(compdir)
	install -m 644 $(B)/man/*.1 $(mandir)
	install -m 644 $(B)/completions/* $(compdir)

clean:
	rm -rf build

-include $(shell find $(addprefix $(B)/,block formats protocols img vmm-shim tools tests) -type f -name '*.d' 2>/dev/null)
.PHONY: fuzz fuzz-virtqueue all unit clean have-deps deps check check-layers demo bench install
