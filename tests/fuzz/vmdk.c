/* vmdk.c - fuzz harness: any bytes as a VMDK image in one file. */
#define FUZZ_FORMAT "vmdk"
#define FUZZ_HEADER 512
#define FUZZ_LITTLE 1
#include "tests/fuzz/harness.h"
