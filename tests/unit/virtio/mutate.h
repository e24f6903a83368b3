/*
 * mutate.h - a hostile guest steered by bytes: the same for the seeded loop of
 * tests/unit/virtio_fuzz.c and for libFuzzer.
 */
#ifndef PLATTER_TEST_MUTATE_H
#define PLATTER_TEST_MUTATE_H

#include "tests/unit/virtio/guest.h"

/* From a booted device: carry out what data says (mutations of rings, headers,
 * registers, configuration space, kicks, turns of the loop, completions in some
 * order), then do what a driver would do to start over, and check that the disk
 * serves.  Returns the number of mutations. */
unsigned mutate_run(struct guest *g, const uint8_t *data, size_t len);

#endif
