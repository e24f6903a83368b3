/*
 * drivers.c - the one table that names formats and protocols.  An explicit list:
 * constructor magic is dropped by static archives.
 */
#include "block/internal.h"
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern const struct blk_driver blk_raw, blk_qcow2, blk_fault, blk_delay, blk_logwrites;
extern const struct blk_driver blk_luks, blk_vhdx, blk_vdi, blk_vpc, blk_parallels, blk_vmdk;
extern const struct blk_driver blk_qcow, blk_dmg, blk_scratch;
extern const struct blk_driver blk_blkdebug, blk_blkverify, blk_copy_on_read;
extern const struct blk_driver blk_file_driver, blk_host_device, blk_mem;
extern const struct blk_driver blk_null_co, blk_null_aio;

const struct blk_driver *const blk_drivers[] = {
    &blk_raw,
    &blk_qcow2,
    &blk_vdi,
    &blk_vhdx,
    &blk_vmdk,
    &blk_vpc,
    &blk_parallels,
    &blk_luks,
    &blk_qcow,
    &blk_dmg,
    &blk_fault,
    &blk_delay,
    &blk_logwrites,
    &blk_scratch,
    &blk_blkdebug,
    &blk_blkverify,
    &blk_copy_on_read,
    &blk_file_driver,
    &blk_host_device,
    &blk_mem,
    &blk_null_co,
    &blk_null_aio,
    NULL,
};

static const struct blk_driver *module_for(const char *name, struct blk_error *e);
static const char *module_at(size_t i);

const struct blk_driver *blk_driver_built_in(const char *name)
{
    for (size_t i = 0; name && blk_drivers[i]; i++) {
        if (!strcmp(blk_drivers[i]->name, name)) {
            return blk_drivers[i];
        }
    }
    return NULL;
}

const struct blk_driver *blk_driver_find(const char *name)
{
    const struct blk_driver *d = blk_driver_built_in(name);
    return d ? d : module_for(name, NULL);
}

bool blk_driver_known(const char *name)
{
    return blk_driver_find(name) != NULL;
}

bool blk_driver_compresses(const char *name)
{
    const struct blk_driver *d = blk_driver_find(name);
    return d && d->compresses;
}

const char *blk_driver_at(size_t i, bool *is_protocol, bool *can_create)
{
    size_t built_in = BLK_ARRAY_SIZE(blk_drivers) - 1;
    const char *module = i < built_in ? NULL : module_at(i - built_in);
    if (i >= built_in && !module) {
        return NULL;
    }
    if (is_protocol) {
        *is_protocol = module || blk_drivers[i]->protocol;
    }
    if (can_create) {
        *can_create = module || blk_drivers[i]->create_opts != NULL;
    }
    return module ? module : blk_drivers[i]->name;
}

const struct blk_option_desc *blk_create_options(const char *format)
{
    const struct blk_driver *d = blk_driver_find(format);
    return d ? d->create_opts : NULL;
}

const struct blk_option_desc *blk_amend_options(const char *format)
{
    const struct blk_driver *d = blk_driver_find(format);
    return d ? d->amend_opts : NULL;
}

static bool scheme_matches(const struct blk_driver *d, const char *name, size_t len)
{
    for (size_t i = 0; d->schemes && d->schemes[i]; i++) {
        if (strlen(d->schemes[i]) == len && !strncmp(d->schemes[i], name, len)) {
            return true;
        }
    }
    return false;
}

/* ---- modules ------------------------------------------------------------------------ */

/* Drivers whose libraries are loaded when they are first used: platter-FILE.so
 * defines `const struct blk_driver blk_NAME`. */
static const struct module {
    const char *name, *file;
    const char *schemes[5];
} modules[] = {
    { "nfs", "nfs", { "nfs" } },
    { "iscsi", "iscsi", { "iscsi" } },
    { "gluster", "gluster", { "gluster", "gluster+tcp", "gluster+unix" } },
    { "nbd", "nbd", { "nbd", "nbds", "nbd+unix", "nbds+unix" } },
    { "http", "http", { "http" } },
    { "https", "http", { "https" } },
    { "ftp", "http", { "ftp" } },
    { "ftps", "http", { "ftps" } },
};

static const struct blk_driver *loaded[BLK_ARRAY_SIZE(modules)];
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;

/* Where modules are: $PLATTER_MODULES, else beside the program (modules/), else
 * ../lib/platter of its folder. */
static int module_path(const char *file, unsigned place, char *buf, size_t len)
{
    const char *dir = getenv("PLATTER_MODULES");
    char exe[PATH_MAX];
    if (dir) {
        return place ? -1 : snprintf(buf, len, "%s/platter-%s.so", dir, file);
    }
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    if (n <= 0 || place > 1) {
        return -1;
    }
    exe[n] = 0;
    *strrchr(exe, '/') = 0;
    return snprintf(buf, len, "%s/%s/platter-%s.so", exe, place ? "../lib/platter" : "modules",
                    file);
}

/* The module's file, or false. */
static bool module_find(const struct module *m, char *buf, size_t len)
{
    for (unsigned place = 0; module_path(m->file, place, buf, len) > 0; place++) {
        if (!access(buf, R_OK)) {
            return true;
        }
    }
    return false;
}

static const struct blk_driver *module_load(size_t i, struct blk_error *e)
{
    const struct module *m = &modules[i];
    char path[PATH_MAX + 64], symbol[64];

    pthread_mutex_lock(&load_lock);
    if (!loaded[i] && !module_find(m, path, sizeof(path))) {
        blk_err(e, ENOENT, "The driver for protocol '%s' is not installed (platter-%s.so)",
                m->name, m->file);
    } else if (!loaded[i]) {
        void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        snprintf(symbol, sizeof(symbol), "blk_%s", m->name);
        loaded[i] = so ? dlsym(so, symbol) : NULL;
        if (!loaded[i]) {
            blk_err(e, ELIBACC, "The driver for protocol '%s' could not be loaded: %s", m->name,
                    dlerror());
        }
    }
    pthread_mutex_unlock(&load_lock);
    return loaded[i];
}

static const struct blk_driver *module_for(const char *name, struct blk_error *e)
{
    for (size_t i = 0; name && i < BLK_ARRAY_SIZE(modules); i++) {
        if (!strcmp(modules[i].name, name)) {
            return module_load(i, e);
        }
    }
    return NULL;
}

/* The module for a scheme; if there is none, the end. */
static size_t module_of_scheme(const char *name, size_t len)
{
    size_t i;
    for (i = 0; i < BLK_ARRAY_SIZE(modules); i++) {
        for (const char *const *s = modules[i].schemes; *s; s++) {
            if (strlen(*s) == len && !strncmp(*s, name, len)) {
                return i;
            }
        }
    }
    return i;
}

bool blk_scheme_known(const char *name)
{
    size_t len = strcspn(name, ":");

    for (size_t i = 0; blk_drivers[i]; i++) {
        if (scheme_matches(blk_drivers[i], name, len)) {
            return true;
        }
    }
    return !strncmp(name, "json:", 5) || module_of_scheme(name, len) < BLK_ARRAY_SIZE(modules);
}

static const char *module_at(size_t i)
{
    return i < BLK_ARRAY_SIZE(modules) ? modules[i].name : NULL;
}

const struct blk_driver *blk_driver_filter_for(const char *name)
{
    size_t len = name ? strcspn(name, ":") : 0;

    for (size_t i = 0; name && name[len] && blk_drivers[i]; i++) {
        if (blk_drivers[i]->filter && scheme_matches(blk_drivers[i], name, len)) {
            return blk_drivers[i];
        }
    }
    return NULL;
}

const char *blk_driver_path(const struct blk_driver *drv, const char *name)
{
    size_t len = strlen(drv->name);
    bool own = drv->paths && !strncmp(name, drv->name, len) && name[len] == ':';

    return name + (own ? len + 1 : 0);
}

const struct blk_driver *blk_driver_for_path(const char *path)
{
    struct stat st;
    bool device = !stat(path, &st) && (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode));

    return device ? &blk_host_device : &blk_file_driver;
}

const struct blk_driver *blk_driver_for_name(const char *filename, struct blk_error *e)
{
    if (!blk_has_protocol(filename)) {
        return blk_driver_for_path(filename);
    }
    size_t len = strcspn(filename, ":");
    for (size_t i = 0; blk_drivers[i]; i++) {
        if (blk_drivers[i]->protocol && scheme_matches(blk_drivers[i], filename, len)) {
            return blk_drivers[i];
        }
    }
    size_t module = module_of_scheme(filename, len);
    if (module < BLK_ARRAY_SIZE(modules)) {
        return module_load(module, e);
    }
    blk_err(e, EINVAL, "Unknown protocol '%.*s'", (int)BLK_MIN(len, 64u), filename);
    return NULL;
}

const char *blk_protocol_for_name(const char *filename, struct blk_error *e)
{
    const struct blk_driver *d = blk_driver_filter_for(filename);
    d = d ? d : blk_driver_for_name(filename, e);
    return d ? d->name : NULL;
}

static size_t add_names(char *text, size_t at, size_t room, bool protocol, bool filter)
{
    for (size_t i = 0; blk_drivers[i]; i++) {
        if (blk_drivers[i]->protocol == protocol && blk_drivers[i]->filter == filter) {
            at += (size_t)snprintf(text + at, room - at, " %s", blk_drivers[i]->name);
        }
    }
    return at;
}

const char *blk_build_info(void)
{
    static char text[1024];
    char path[PATH_MAX + 64];
    size_t at = (size_t)snprintf(text, sizeof(text), "platter " PLATTER_VERSION "\nformats:");
    at = add_names(text, at, sizeof(text), false, false);
    at += (size_t)snprintf(text + at, sizeof(text) - at, " (filters:");
    at = add_names(text, at, sizeof(text), false, true);
    at += (size_t)snprintf(text + at, sizeof(text) - at, ")\nprotocols:");
    at = add_names(text, at, sizeof(text), true, false);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(modules); i++) {
        if (module_find(&modules[i], path, sizeof(path))) {
            at += (size_t)snprintf(text + at, sizeof(text) - at, " %s", modules[i].name);
        }
    }
    snprintf(text + at, sizeof(text) - at, "\nlibraries: jansson zlib libzstd"
#ifdef HAVE_BZIP2
             " bzip2"
#endif
#ifdef HAVE_DEFLATE
             " libdeflate"
#endif
#ifdef HAVE_GCRYPT
             " libgcrypt"
#endif
#ifdef HAVE_URING
             " liburing"
#endif
    );
    return text;
}
