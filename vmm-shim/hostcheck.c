/*
 * hostcheck.c - see hostcheck.h.
 *
 * Flags and files say what should be; the last check runs a guest of a few
 * bytes and measures its speed, because some hosts open /dev/kvm and then
 * interpret every instruction.
 */
#include "vmm-shim/hostcheck.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vmm-shim/kvm.h"
#include "vmm-shim/mem.h"
#include "vmm-shim/vcpu.h"

#define KVM_PATH    "/dev/kvm"
#define PROBE_LOOPS 50000u          /* of two instructions */
#define SLOW_MIPS   20.0            /* hardware: thousands; interpreters: around one */

struct cpu_facts {
    bool vmx, svm, hypervisor;
    char model[128];
};

/* ---- report lines ------------------------------------------------------------------- */

/* The details are printed after the verdict, which needs them. */
struct report {
    FILE *lines;
    char reason[4200];              /* the last thing that was missing */
};

static void ok(struct report *r, const char *what, const char *text)
{
    fprintf(r->lines, "  ok    %-16s %s\n", what, text);
}

static void bad(struct report *r, const char *what, const char *text)
{
    snprintf(r->reason, sizeof(r->reason), "%s: %s", what, text);
    fprintf(r->lines, "  MISS  %-16s %s\n", what, text);
}

static void note(struct report *r, const char *what, const char *text)
{
    fprintf(r->lines, "  note  %-16s %s\n", what, text);
}

static void todo(struct report *r, const char *text)
{
    fprintf(r->lines, "        %-16s -> %s\n", "", text);
}

/* ---- the CPU --------------------------------------------------------------------------- */

static bool has_word(const char *line, const char *word)
{
    size_t len = strlen(word);

    for (const char *p = line; (p = strstr(p, word)) != NULL; p += len) {
        if ((p == line || p[-1] == ' ' || p[-1] == '\t') && (p[len] == ' ' || p[len] == '\n'))
            return true;
    }
    return false;
}

static void read_cpu_facts(struct cpu_facts *c)
{
    static char line[16384];
    FILE *f = fopen("/proc/cpuinfo", "re");

    memset(c, 0, sizeof(*c));
    while (f && fgets(line, sizeof(line), f)) {
        const char *colon = strchr(line, ':');

        if (colon && strncmp(line, "model name", 10) == 0 && !c->model[0])
            snprintf(c->model, sizeof(c->model), "%.*s", (int)strcspn(colon + 2, "\n"),
                     colon + 2);
        if (colon && strncmp(line, "flags", 5) == 0) {
            c->vmx |= has_word(line, "vmx");
            c->svm |= has_word(line, "svm");
            c->hypervisor |= has_word(line, "hypervisor");
        }
    }
    if (f)
        fclose(f);
}

static void report_cpu(struct report *r, const struct cpu_facts *c)
{
    note(r, "CPU", c->model[0] ? c->model : "unknown");
    if (c->vmx || c->svm) {
        ok(r, "virtualization", c->vmx ? "Intel VT-x (flag vmx)" : "AMD-V (flag svm)");
    } else {
        bad(r, "virtualization", "neither vmx nor svm among the CPU's flags");
        if (c->hypervisor)
            todo(r, "this is a virtual machine: its host must pass nested virtualization on "
                 "(QEMU: -cpu host; clouds: a metal or nested-capable type)");
        else
            todo(r, "switch on VT-x / AMD-V (SVM) in the firmware's set-up");
    }
    if (c->hypervisor)
        note(r, "nesting", "this machine is itself a virtual machine: guests will be slower");
}

/* First character of a module parameter, or 0. */
static char module_parameter(const char *path)
{
    FILE *f = fopen(path, "re");
    int ch = f ? fgetc(f) : EOF;

    if (f)
        fclose(f);
    return (char)(ch == EOF ? 0 : ch);
}

static void report_paging(struct report *r)
{
    char npt = module_parameter("/sys/module/kvm_amd/parameters/npt");
    char ept = module_parameter("/sys/module/kvm_intel/parameters/ept");

    if (npt == 'Y' || npt == '1' || ept == 'Y' || ept == '1')
        ok(r, "nested paging", npt ? "npt" : "ept");
    else if (npt || ept)
        note(r, "nested paging", "off: guests that touch much memory will be slow");
}

/* ---- /dev/kvm ----------------------------------------------------------------------------- */

static void report_missing(struct report *r, const struct cpu_facts *c)
{
    bad(r, KVM_PATH, "does not exist");
    if (c->vmx || c->svm) {
        todo(r, c->vmx ? "sudo modprobe kvm_intel" : "sudo modprobe kvm_amd");
        todo(r, "in a container: start it with --device /dev/kvm");
    } else {
        todo(r, "nothing to load: the CPU flag above is missing");
    }
}

static void report_denied(struct report *r, const struct stat *st)
{
    const struct group *g = getgrgid(st->st_gid);
    char text[160];

    snprintf(text, sizeof(text), "owner uid %u, group %s, mode %03o", (unsigned)st->st_uid,
             g ? g->gr_name : "?", (unsigned)st->st_mode & 0777u);
    bad(r, "permission", text);
    if (st->st_gid != 0 && (st->st_mode & 060) == 060) {
        snprintf(text, sizeof(text), "sudo usermod -aG %s $USER, then log in again",
                 g ? g->gr_name : "kvm");
        todo(r, text);
    } else {
        todo(r, "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm, and join the group kvm");
    }
}

/* The descriptor, or -1 after saying why. */
static int check_device(struct report *r, const struct cpu_facts *c)
{
    struct stat st;
    char text[160];
    int fd;

    if (stat(KVM_PATH, &st) < 0) {
        report_missing(r, c);
        return -1;
    }
    fd = open(KVM_PATH, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        ok(r, KVM_PATH, "opens for reading and writing");
        return fd;
    }
    if (errno == EACCES || errno == EPERM) {
        report_denied(r, &st);
        return -1;
    }
    snprintf(text, sizeof(text), "exists, but opening it says: %s", strerror(errno));
    bad(r, KVM_PATH, text);
    todo(r, c->vmx ? "sudo modprobe kvm_intel" : c->svm ? "sudo modprobe kvm_amd"
                                            : "no module serves it without the CPU flag above");
    return -1;
}

static bool check_capabilities(struct report *r, int fd)
{
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    bool all = version == KVM_API_VERSION;
    char text[160];

    snprintf(text, sizeof(text), "version %d", version);
    if (!all) {
        bad(r, "KVM API", text);
        todo(r, "12 is needed: a Linux kernel's own KVM");
        return false;
    }
    ok(r, "KVM API", text);
    for (const struct kvm_need *n = kvm_needs; n->name; n++) {
        if (ioctl(fd, KVM_CHECK_EXTENSION, (unsigned long)n->cap) > 0) {
            ok(r, n->name, n->use);
        } else {
            bad(r, n->name, n->use);
            todo(r, "a newer kernel, or one with this switched on");
            all = false;
        }
    }
    snprintf(text, sizeof(text), "%d", ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS));
    note(r, "CPUs per guest", text);
    return all;
}

/* ---- the measured guest ---------------------------------------------------------------- */

/* mov ecx, PROBE_LOOPS; l: dec ecx; jnz l; mov al, '!'; out 0x80, al; hlt */
static const uint8_t probe_code[] = {
    0x66, 0xb9, PROBE_LOOPS & 0xff, PROBE_LOOPS >> 8 & 0xff, PROBE_LOOPS >> 16, 0,
    0x66, 0x49, 0x75, 0xfc, 0xb0, '!', 0xe6, 0x80, 0xf4,
};
#define PROBE_AT   0x1000u
#define PROBE_SIZE 0x10000u
#define PROBE_PORT 0x80u

struct probe {
    struct vm vm;
    struct vcpu vcpu;
    struct mem mem;
    uint64_t started, took;
    char text[160];
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void probe_port_write(void *arg, uint16_t port, const void *data, unsigned len)
{
    struct probe *p = arg;

    if (port == PROBE_PORT && *(const uint8_t *)data == '!') {
        p->took = now_ns() - p->started;
        atomic_store(&p->vm.stop, true);
    }
}

static void probe_write(void *arg, uint64_t gpa, const void *data, unsigned len)
{
}

static void probe_port_read(void *arg, uint16_t port, void *data, unsigned len)
{
    memset(data, 0xff, len);
}

static void probe_read(void *arg, uint64_t gpa, void *data, unsigned len)
{
    memset(data, 0xff, len);
}

static void probe_ended(void *arg, enum vm_end why, const char *text)
{
    struct probe *p = arg;

    snprintf(p->text, sizeof(p->text), "%s", text ? text : "the test guest crashed");
    atomic_store(&p->vm.stop, true);
}

static const struct vcpu_bus probe_bus = {
    .port_read = probe_port_read,
    .port_write = probe_port_write,
    .mmio_read = probe_read,
    .mmio_write = probe_write,
    .ended = probe_ended,
};

static int probe_start(struct probe *p, struct blk_error *e)
{
    int ret = vm_init(&p->vm, e);

    if (ret < 0)
        return ret;
    ret = mem_add_anon(&p->mem, 0, PROBE_SIZE, false);
    if (ret < 0)
        return blk_err_errno(e, -ret, "no memory for the test guest");
    mem_write(&p->mem, PROBE_AT, probe_code, sizeof(probe_code));
    ret = vm_map(&p->vm, &p->mem, e);
    if (ret == 0)
        ret = vcpu_init(&p->vcpu, &p->vm, 0, 1, &probe_bus, p, e);
    if (ret == 0)
        ret = vcpu_set_real_mode(&p->vcpu, PROBE_AT, e);
    return ret;
}

static bool report_speed(struct report *r, const struct probe *p, const struct cpu_facts *c)
{
    double mips = 2.0 * PROBE_LOOPS * 1000.0 / (double)(p->took ? p->took : 1);
    char text[160];

    if (mips >= SLOW_MIPS) {
        snprintf(text, sizeof(text), "%.3g million instructions a second", mips);
        ok(r, "a test guest", text);
        return true;
    }
    snprintf(text, sizeof(text), "/dev/kvm opens but runs guests by pure emulation, %.2g million "
             "instructions a second", mips);
    bad(r, "a test guest", text);
    todo(r, c->vmx || c->svm ? "the kvm module here does not use the CPU's virtualization"
                          : "use a machine whose CPU shows vmx or svm");
    return false;
}

static bool check_guest(struct report *r, const struct cpu_facts *c)
{
    struct probe p = { .vm = { .fd = -1, .kvm = -1 }, .vcpu = { .fd = -1 } };
    struct blk_error e = BLK_ERROR_INIT;
    bool good = false;

    if (probe_start(&p, &e) == 0) {
        p.started = now_ns();
        vcpu_run(&p.vcpu);
        if (p.text[0])
            bad(r, "a test guest", p.text);
        else
            good = report_speed(r, &p, c);
    } else {
        bad(r, "a test guest", e.text);
    }
    vcpu_fini(&p.vcpu);
    vm_fini(&p.vm);
    mem_free(&p.mem);
    return good;
}

static bool check_all(struct report *r)
{
    struct cpu_facts cpu;
    bool good;
    int fd;

    read_cpu_facts(&cpu);
    report_cpu(r, &cpu);
    fd = check_device(r, &cpu);
    good = fd >= 0 && check_capabilities(r, fd);
    if (fd >= 0)
        close(fd);
    if (!good)
        return false;
    report_paging(r);
    return check_guest(r, &cpu);
}

bool hostcheck_run(void)
{
    char *text = NULL;
    size_t len = 0;
    struct report r = { .lines = open_memstream(&text, &len) };
    bool good;

    if (!r.lines) {
        printf("No: out of memory\n");
        return false;
    }
    good = check_all(&r);
    fclose(r.lines);
    if (good)
        printf("Yes: this host can run guests.\n%s", text);
    else
        printf("No: this host cannot run guests well (%s).\n%s", r.reason, text);
    free(text);
    return good;
}
