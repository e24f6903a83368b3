/* qcow.c - fuzz harness: any bytes as a qcow image of version 1. */
#define FUZZ_FORMAT "qcow"
#define FUZZ_HEADER 56
#include "tests/fuzz/harness.h"
