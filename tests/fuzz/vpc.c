/* vpc.c - fuzz harness: any bytes as a VHD image. */
#define FUZZ_FORMAT "vpc"
#define FUZZ_HEADER 1536
#include "tests/fuzz/harness.h"
