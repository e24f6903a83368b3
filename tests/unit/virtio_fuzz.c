/*
 * virtio_fuzz.c - 200,000 seeded mutations of rings and registers.  The seed of a
 * failing round is printed; PLATTER_FUZZ_SEED starts there.
 * With clang's libFuzzer (make fuzz-virtqueue) the steering bytes are its own.
 */
#include "tests/unit/virtio/mutate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct virtio_blk_config config = { .queues = 2 };

#ifdef FUZZ_LIBFUZZER

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct guest g;

    guest_new(&g, &config);
    guest_boot(&g, 64);
    mutate_run(&g, data, size);
    guest_free(&g);
    return 0;
}

#else

#define MUTATIONS 200000u
#define ROUND     1500u             /* bytes of steering between two restarts */

static void two_hundred_thousand_mutations_do_no_harm(void **state)
{
    static struct guest g;
    const char *env = getenv("PLATTER_FUZZ_SEED");
    unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : 1, done = 0;
    uint8_t data[ROUND];

    guest_new(&g, &config);
    guest_boot(&g, 64);
    while (done < MUTATIONS) {
        unsigned s = seed * 2654435761u;

        if (env)
            fprintf(stderr, "# seed %u\n", seed);
        for (unsigned i = 0; i < ROUND; i++) {
            s = s * 1664525 + 1013904223;
            data[i] = (uint8_t)(s >> 24);
        }
        done += mutate_run(&g, data, ROUND);
        seed++;
    }
    print_message("# %u mutations, seeds up to %u, %llu requests, %llu broken queues\n", done, seed,
                  (unsigned long long)virtio_blk_stats(g.disk)->requests,
                  (unsigned long long)virtio_blk_stats(g.disk)->broken);
    guest_free(&g);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_hundred_thousand_mutations_do_no_harm),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
