/* qcow2.c - fuzz harness: any bytes as a qcow2 image. */
#define FUZZ_FORMAT "qcow2"
#define FUZZ_HEADER 112
#include "tests/fuzz/harness.h"
