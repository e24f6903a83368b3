/* vdi.c - fuzz harness: any bytes as a VDI image. */
#define FUZZ_FORMAT "vdi"
#define FUZZ_HEADER 512
#define FUZZ_LITTLE 1
#include "tests/fuzz/harness.h"
