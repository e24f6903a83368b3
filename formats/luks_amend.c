/*
 * luks_amend.c - adding and removing passwords, in QEMU's words.
 */
#include "formats/luks.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ITER_MS 2000u

struct amend {
    const char *state, *new_secret, *old_secret;
    bool has_slot, has_iter;
    int64_t slot;
    uint64_t iter_ms;
    bool force;
};

static int take_number(struct blk_opts *o, const char *prefix, const char *name, bool *has,
                       uint64_t *out, struct blk_error *e)
{
    char key[64];
    snprintf(key, sizeof(key), "%s%s", prefix, name);
    *has = blk_opts_has(o, key);
    return *has ? blk_opts_get_u64(o, key, out, e) : 0;
}

static const char *take_text(struct blk_opts *o, const char *prefix, const char *name)
{
    char key[64];
    snprintf(key, sizeof(key), "%s%s", prefix, name);
    return blk_opts_get(o, key);
}

static int take_options(struct amend *a, struct blk_opts *o, const char *prefix,
                        struct blk_error *e)
{
    uint64_t slot = 0;
    int err;

    a->state = take_text(o, prefix, "state");
    a->new_secret = take_text(o, prefix, "new-secret");
    a->old_secret = take_text(o, prefix, "old-secret");
    a->iter_ms = ITER_MS;
    if ((err = take_number(o, prefix, "keyslot", &a->has_slot, &slot, e)) ||
        (err = take_number(o, prefix, "iter-time", &a->has_iter, &a->iter_ms, e))) {
        return err;
    }
    a->slot = (int64_t)slot;
    if (!a->state) {
        return blk_err(e, EINVAL, "Parameter 'state' is missing");
    }
    if (strcmp(a->state, "active") && strcmp(a->state, "inactive")) {
        return blk_err(e, EINVAL, "Parameter 'state' does not accept value '%s'", a->state);
    }
    return 0;
}

static unsigned count_active(const struct luks_header *h)
{
    unsigned n = 0;
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        n += h->slot[i].active;
    }
    return n;
}

static bool slot_in_range(const struct amend *a)
{
    return a->slot >= 0 && a->slot < (int64_t)LUKS_SLOTS;
}

/* The slot a new password goes to. */
static int choose_slot(const struct amend *a, const struct luks_header *h, unsigned *out,
                       struct blk_error *e)
{
    if (a->has_slot && !slot_in_range(a)) {
        return blk_err(e, EINVAL, "Invalid keyslot %u specified, must be between 0 and %u",
                       (unsigned)a->slot, LUKS_SLOTS - 1);
    }
    *out = 0;
    if (a->has_slot) {
        *out = (unsigned)a->slot;
        if (h->slot[*out].active && !a->force) {
            return blk_err(e, EINVAL, "Refusing to overwrite active keyslot %u - please erase it "
                           "first", *out);
        }
        return 0;
    }
    while (*out < LUKS_SLOTS && h->slot[*out].active) {
        ++*out;
    }
    return *out < LUKS_SLOTS ? 0 : blk_err(e, EINVAL, "Can't add a keyslot - all keyslots are in "
                                           "use");
}

static int add_password(const struct amend *a, const struct luks_place *at,
                        struct luks_header *h, const char *secret, struct blk_error *e)
{
    uint8_t key[CRYPTO_KEY_MAX];
    const char *old, *new;
    unsigned slot = 0;
    int err;

    if (!a->new_secret) {
        return blk_err(e, EINVAL, "'new-secret' is required to activate a keyslot");
    }
    if (a->old_secret) {
        return blk_err(e, EINVAL, "'old-secret' must not be given when activating keyslots");
    }
    err = choose_slot(a, h, &slot, e);
    err = err ? err : blk_secret_get_text(secret, &old, e);
    if (err) {
        return err;
    }
    if ((err = luks_unlock(at, h, old, key, e))) {
        blk_error_hint(e, "Failed to retrieve the master key");
        return err;
    }
    err = blk_secret_get_text(a->new_secret, &new, e);
    if (!err && (err = luks_slot_store(at, h, slot, new, key, a->iter_ms, e))) {
        blk_error_hint(e, "Failed to write to keyslot %u", slot);
    }
    crypto_wipe(key, sizeof(key));
    return err;
}

/* Does a slot open with the password?  As luks_slot_open(), without the key. */
static int slot_matches(const struct luks_place *at, const struct luks_header *h, unsigned slot,
                        const char *password, struct blk_error *e)
{
    uint8_t key[CRYPTO_KEY_MAX];
    int r = luks_slot_open(at, h, slot, password, key, e);
    crypto_wipe(key, sizeof(key));
    return r;
}

static int erase_given(const struct amend *a, const struct luks_place *at, struct luks_header *h,
                       const char *old, struct blk_error *e)
{
    unsigned slot = (unsigned)a->slot;

    if (!slot_in_range(a)) {
        return blk_err(e, EINVAL, "Invalid keyslot %d specified, must be between 0 and %u",
                       (int)a->slot, LUKS_SLOTS - 1);
    }
    int r = old ? slot_matches(at, h, slot, old, e) : 1;
    if (r <= 0) {
        return r ? r : blk_err(e, EINVAL, "Given keyslot %u doesn't contain the given old "
                               "password for erase operation", slot);
    }
    if (!a->force && !h->slot[slot].active) {
        return blk_err(e, EINVAL, "Given keyslot %u is already erased (inactive) ", slot);
    }
    if (!a->force && count_active(h) == 1) {
        return blk_err(e, EINVAL, "Attempt to erase the only active keyslot %u which will erase "
                       "all the data in the image irreversibly - refusing operation", slot);
    }
    return luks_slot_erase(at, h, slot, e);
}

static int erase_matching(const struct amend *a, const struct luks_place *at,
                          struct luks_header *h, const char *old, struct blk_error *e)
{
    bool hit[LUKS_SLOTS] = { false };
    unsigned hits = 0;
    int err = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        int r = slot_matches(at, h, i, old, e);
        if (r < 0) {
            return r;
        }
        hit[i] = r;
        hits += hit[i];
    }
    if (!hits) {
        return blk_err(e, EINVAL, "No keyslots match given (old) password for erase operation");
    }
    if (!a->force && hits == count_active(h)) {
        return blk_err(e, EINVAL, "All the active keyslots match the (old) password that was "
                       "given and erasing them will erase all the data in the image irreversibly "
                       "- refusing operation");
    }
    for (unsigned i = 0; !err && i < LUKS_SLOTS; i++) {
        err = hit[i] ? luks_slot_erase(at, h, i, e) : 0;
    }
    return err;
}

static int erase(const struct amend *a, const struct luks_place *at, struct luks_header *h,
                 struct blk_error *e)
{
    const char *old = NULL;
    int err = 0;

    if (a->new_secret) {
        return blk_err(e, EINVAL, "'new-secret' must not be given when erasing keyslots");
    }
    if (a->has_iter) {
        return blk_err(e, EINVAL, "'iter-time' must not be given when erasing keyslots");
    }
    if (a->old_secret) {
        err = blk_secret_get_text(a->old_secret, &old, e);
    }
    if (err) {
        return err;
    }
    if (a->has_slot) {
        return erase_given(a, at, h, old, e);
    }
    return old ? erase_matching(a, at, h, old, e)
               : blk_err(e, EINVAL, "To erase keyslot(s), either explicit keyslot index or the "
                         "password currently contained in them must be given");
}

int luks_amend(const struct luks_place *at, struct luks_header *h, struct blk_opts *o,
               const char *prefix, const char *secret, bool force, struct blk_error *e)
{
    struct amend a = { .force = force };
    int err = take_options(&a, o, prefix, e);

    if (err) {
        return err;
    }
    return strcmp(a.state, "active") ? erase(&a, at, h, e) : add_password(&a, at, h, secret, e);
}
