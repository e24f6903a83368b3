/* dmg.c - fuzz harness: any bytes as an Apple disk image. */
#define FUZZ_FORMAT "dmg"
#define FUZZ_HEADER 1024
#include "tests/fuzz/harness.h"
