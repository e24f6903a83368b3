/*
 * inspect_names.c - what an image names: which of the names would take somebody who opens
 * it to a place that the image should not choose.  Nothing is opened.
 */
#include <ctype.h>
#include <string.h>
#include "img/inspect.h"

static bool climbs(const char *name)
{
    for (const char *p = name; *p; p += strcspn(p, "/\\"), p += *p != 0) {
        if (p[0] == '.' && p[1] == '.' && (!p[2] || p[2] == '/' || p[2] == '\\')) {
            return true;
        }
    }
    return false;
}

static bool is_system_path(const char *name)
{
    static const char *const dirs[] = { "/dev/", "/proc/", "/sys/", "\\\\.\\", "\\\\?\\" };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(dirs); i++) {
        if (!strncmp(name, dirs[i], strlen(dirs[i]))) {
            return true;
        }
    }
    return false;
}

static bool is_absolute(const char *name)
{
    bool drive = isalpha((unsigned char)name[0]) && name[1] == ':' &&
                 (name[2] == '\\' || name[2] == '/');
    return name[0] == '/' || name[0] == '\\' || drive;
}

static bool has_controls(const char *name)
{
    for (; *name; name++) {
        if ((unsigned char)*name < 0x20 || *name == 0x7f) {
            return true;
        }
    }
    return false;
}

/* Words for what is wrong with a name; none for that of a file beside the image. */
static json_t *dangers_of(const char *name)
{
    const char *path = name + (strncmp(name, "file:", 5) ? 0 : 5);
    json_t *list = json_array();

    if (is_absolute(path)) {
        json_array_append_new(list, json_string(is_system_path(path) ? "device" : "absolute"));
    } else if (path == name && blk_has_protocol(name)) {
        json_array_append_new(list, json_string("protocol"));
    }
    if (climbs(path)) {
        json_array_append_new(list, json_string("climbing"));
    }
    if (has_controls(name)) {
        json_array_append_new(list, json_string("control-characters"));
    }
    return list;
}

static const char *danger_text(const char *word)
{
    static const char *const texts[][2] = {
        { "device", "a path of the system: a device, or what looks like a file" },
        { "absolute", "an absolute path" },
        { "protocol", "not a plain path: it would be opened by its protocol" },
        { "climbing", "a path out of the image's directory" },
        { "control-characters", "with control characters in it" },
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(texts); i++) {
        if (!strcmp(texts[i][0], word)) {
            return texts[i][1];
        }
    }
    return word;
}

static void add_one(struct report *r, json_t *list, const json_t *ref)
{
    const char *name = json_string_value(json_object_get(ref, "name"));
    const char *kind = json_string_value(json_object_get(ref, "kind"));
    char *shown = blk_redact(name);
    json_t *o = json_copy((json_t *)ref), *dangers = dangers_of(name), *word;
    size_t i;

    json_object_set_new(o, "name", json_string_nocheck(shown ? shown : ""));
    json_array_foreach(dangers, i, word) {
        report_reason(r, VERDICT_SUSPICIOUS, "%s '%.200s': %s", kind, shown ? shown : "",
                      danger_text(json_string_value(word)));
    }
    if (!strcmp(kind, "backing file") && !json_object_get(ref, "format")) {
        report_note(r, "the backing file's format is not said: it would be guessed");
    }
    json_object_set_new(o, "dangers", dangers);
    json_array_append_new(list, o);
    free(shown);
}

void inspect_names(struct report *r, const json_t *references)
{
    json_t *list = json_array(), *ref;
    size_t i;

    json_array_foreach((json_t *)references, i, ref) {
        add_one(r, list, ref);
    }
    json_object_set_new(r->o, "references", list);
}
