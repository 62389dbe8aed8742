# Included by the Makefile beside this folder.  The core is compiled as for the thread sanitizer, and
# linked with points.c in its place.  KILLPOINTS=program arguments, to try one: see main.c.

KILLPOINTS := $(BUILD)/killpoints
KILLPOINTS_SOURCES := $(wildcard killpoints/*.c)
# wraps.c has each of these.
STEPS := read write pread pwrite preadv2 pwritev2 close ftruncate fallocate munmap madvise memfd_create mmap \
    open fcntl mremap syscall clock_gettime

.PHONY: killpoints killpoints-all

killpoints: $(KILLPOINTS)/killpoints
	$< quick

killpoints-all: $(KILLPOINTS)/killpoints
	$< all

# gcc says that this sanitizer does not know fences.  points.c does.  Names of system calls must be those of STEPS:
# with _FILE_OFFSET_BITS they are open64, and with _FORTIFY_SOURCE, which some systems' gcc defines, __read_chk.
$(KILLPOINTS)/core_%.o: $(CORE)/%.c $(HEADERS) Makefile killpoints/killpoints.mk
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -U_FILE_OFFSET_BITS -U_FORTIFY_SOURCE -fsanitize=thread $(if $(findstring clang,$(shell $(CC) --version)),,-Wno-tsan) -c $< -o $@

$(KILLPOINTS)/%.o: killpoints/%.c $(wildcard killpoints/*.h) $(HEADERS) Makefile killpoints/killpoints.mk
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -O2 -c $< -o $@

$(KILLPOINTS)/killpoints: $(KILLPOINTS_SOURCES:killpoints/%.c=$(KILLPOINTS)/%.o) \
    $(CORE_SOURCES:$(CORE)/%.c=$(KILLPOINTS)/core_%.o)
	@nm -u $(filter $(KILLPOINTS)/core_%,$^) > $@.names; for step in $(STEPS); do \
	    grep -q " $$step$$" $@.names || { echo "the core calls no $$step: its kills are not tried"; exit 1; }; done
	$(CC) -no-pie -pthread $(STEPS:%=-Wl,--wrap=%) $^ -o $@
