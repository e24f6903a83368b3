/* parallels.c - fuzz harness: any bytes as a Parallels image. */
#define FUZZ_FORMAT "parallels"
#define FUZZ_HEADER 64
#define FUZZ_LITTLE 1
#include "tests/fuzz/harness.h"
