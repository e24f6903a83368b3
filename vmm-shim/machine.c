/*
 * machine.c - see machine.h.
 *
 * Threads: the main thread sets up, then polls the console, the signals and the
 * end of the guest; one thread a vCPU; one thread a disk.  Taken apart in this
 * order: vCPUs stop, disks drain, flush and close (their devices unbind from the
 * VM), then the board, the VM, the memory.
 */
#include "vmm-shim/machine.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm-shim/acpi.h"
#include "vmm-shim/boot_linux.h"
#include "vmm-shim/disk.h"
#include "vmm-shim/layout.h"
#include "vmm-shim/platform.h"

struct machine {
    const struct run_options *options;
    struct mem mem;
    struct vm vm;
    struct pci_bus pci;
    struct pci_dev bridge;
    struct serial com1;
    struct platform platform;
    struct console console;
    struct boot_entry entry;
    struct vcpu *vcpu;
    struct disk *disk;
    unsigned vcpus, disks;          /* made so far */
    int end_fd;
    atomic_int end;                 /* enum vm_end */
    char end_text[160];             /* written before end_fd is */
};

static void wake(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof(one));

    (void)n;                        /* EAGAIN: the counter is full, thus readable */
}

/* ---- signals -------------------------------------------------------------------------- */

/* Where a signal goes while a guest runs, else -1. */
static volatile sig_atomic_t signal_fd = -1;
static volatile sig_atomic_t signal_seen;
/* Signals that do not end it. */
static volatile sig_atomic_t cont_seen, report_seen;
/* Disks are being flushed and closed: the first signal waits for that, a second
 * one does not (a dead server must not keep us for ever). */
static volatile sig_atomic_t closing;

static void note_signal(int sig)
{
    if (sig == SIGCONT)
        cont_seen = 1;
    else if (sig == SIGUSR1)
        report_seen = 1;
    else
        signal_seen = sig;
}

static void say_no_guest(void)
{
    static const char text[] = "platter-run: disks are being opened, or flushed and closed\n";
    ssize_t n = write(STDERR_FILENO, text, sizeof(text) - 1);

    (void)n;
}

static void on_signal(int sig)
{
    int saved = errno;

    if (signal_fd >= 0) {
        note_signal(sig);
        wake(signal_fd);
    } else if (sig == SIGUSR1) {
        say_no_guest();
    } else if (closing && !signal_seen && sig != SIGCONT) {
        signal_seen = sig;
    } else if (sig != SIGCONT) {
        console_restore();
        signal(sig, SIG_DFL);
        raise(sig);
    }
    errno = saved;
}

static void signals_to(int fd)
{
    static const int list[] = { SIGTERM, SIGINT, SIGHUP, SIGCONT, SIGUSR1 };
    struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

    signal_fd = fd;
    for (size_t i = 0; i < BLK_ARRAY_SIZE(list); i++)
        sigaction(list[i], &sa, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- the serial line --------------------------------------------------------------------- */

static void com1_irq(void *arg, bool level)
{
    struct machine *m = arg;

    vm_irq_line(&m->vm, IRQ_COM1, level);
}

static void com1_output(void *arg, uint8_t byte)
{
    struct machine *m = arg;

    console_put(&m->console, byte);
}

static void drain_event(int fd)
{
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof(count));

    (void)n;
}

static void com1_room(void *arg)
{
    struct machine *m = arg;

    wake(m->console.room_fd);
}

static const struct serial_ops com1_ops = {
    .irq = com1_irq,
    .output = com1_output,
    .room = com1_room,
};

/* ---- set-up ------------------------------------------------------------------------------ */

/* Any vCPU thread. */
static void guest_ended(void *arg, enum vm_end why, const char *text)
{
    struct machine *m = arg;
    int running = VM_RUNNING;

    if (!atomic_compare_exchange_strong(&m->end, &running, (int)why))
        return;
    snprintf(m->end_text, sizeof(m->end_text), "%s", text ? text : "");
    atomic_store(&m->vm.stop, true);
    wake(m->end_fd);
}

static int make_memory(struct machine *m, struct blk_error *e)
{
    uint64_t low = BLK_MIN(m->options->memory, LAYOUT_LOW_MAX);
    uint64_t high = m->options->memory - low;
    int ret = mem_add_anon(&m->mem, 0, low, false);

    if (ret == 0 && high > 0)
        ret = mem_add_anon(&m->mem, LAYOUT_HIGH_BASE, high, false);
    if (ret < 0)
        return blk_err_errno(e, -ret, "Could not get %llu MiB of memory for the guest",
                             (unsigned long long)(m->options->memory >> 20));
    return vm_map(&m->vm, &m->mem, e);
}

static int make_board(struct machine *m, struct blk_error *e)
{
    const struct pci_host host = { .ops = &vm_pci_ops, .arg = &m->vm };
    int ret = pci_bus_init(&m->pci, &host);

    if (ret < 0)
        return blk_err_errno(e, -ret, "Could not make the PCI bus");
    pci_bus_set_window(&m->pci, LAYOUT_PCI_BASE, LAYOUT_PCI_END);
    ret = pci_host_bridge_init(&m->bridge, &m->pci, 0);
    if (ret < 0)
        return blk_err_errno(e, -ret, "Could not make the PCI host bridge");
    serial_init(&m->com1, &com1_ops, m);
    platform_init(&m->platform, &m->com1, &m->pci, guest_ended, m);
    return 0;
}

static int make_disks(struct machine *m, struct blk_error *e)
{
    const struct run_options *o = m->options;
    int ret = 0;

    m->disk = calloc(o->disks + 1u, sizeof(m->disk[0]));
    if (!m->disk)
        return blk_err(e, ENOMEM, "out of memory");
    for (unsigned i = 0; ret == 0 && i < o->disks; i++) {
        ret = disk_open(&m->disk[i], &o->disk[i], o->cpus, &m->pci, (i + 1) << 3, &m->mem, e);
        m->disks += ret == 0;
    }
    if (ret < 0)
        return ret;
    ret = pci_bus_assign(&m->pci);
    return ret < 0 ? blk_err_errno(e, -ret, "Could not place the PCI devices") : 0;
}

static int load_guest(struct machine *m, struct blk_error *e)
{
    const struct run_options *o = m->options;
    struct boot_files files = { .kernel = o->kernel, .initrd = o->initrd, .cmdline = o->append };
    int ret = boot_linux_load(&m->mem, &files, &m->entry, e);

    if (ret < 0)
        return ret;
    ret = acpi_build(&m->mem, o->cpus);
    return ret < 0 ? blk_err_errno(e, -ret, "Could not place the ACPI tables") : 0;
}

static int make_vcpus(struct machine *m, struct blk_error *e)
{
    const struct boot_entry *b = &m->entry;
    unsigned count = m->options->cpus;
    int ret = 0;

    if (count > m->vm.vcpus_max)
        return blk_err(e, EINVAL, "this host's KVM takes at most %u CPUs", m->vm.vcpus_max);
    m->vcpu = calloc(count, sizeof(m->vcpu[0]));
    if (!m->vcpu)
        return blk_err(e, ENOMEM, "out of memory");
    for (unsigned i = 0; ret == 0 && i < count; i++) {
        ret = vcpu_init(&m->vcpu[i], &m->vm, i, count, &platform_bus, &m->platform, e);
        m->vcpus += ret == 0;
    }
    if (ret == 0)
        ret = vcpu_set_long_mode(&m->vcpu[0], b->rip, b->rsi, b->rsp, b->cr3, b->gdt, e);
    return ret;
}

static int machine_start(struct machine *m, struct blk_error *e)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < m->disks; i++)
        ret = disk_start(&m->disk[i], e);
    if (ret == 0)
        ret = console_open(&m->console, m->options->console, m->options->console_path, e);
    for (unsigned i = 0; ret == 0 && i < m->vcpus; i++)
        ret = vcpu_start(&m->vcpu[i], e);
    return ret;
}

/* What is cheap to get wrong comes first, what can be slow (disks) last. */
static int machine_init(struct machine *m, const struct run_options *o, struct blk_error *e)
{
    int ret;

    m->options = o;
    m->console.in = m->console.out = m->console.room_fd = -1;
    m->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->end_fd < 0)
        return blk_err_errno(e, errno, "Could not make an eventfd");
    ret = vm_init(&m->vm, e);
    if (ret == 0)
        ret = make_memory(m, e);
    if (ret == 0)
        ret = load_guest(m, e);
    if (ret == 0)
        ret = make_board(m, e);
    if (ret == 0)
        ret = make_vcpus(m, e);
    if (ret == 0)
        ret = make_disks(m, e);
    return ret;
}

/* ---- running ------------------------------------------------------------------------------- */

static void feed_guest(struct machine *m)
{
    struct console *c = &m->console;

    if (c->have > 0)
        console_taken(c, serial_input(&m->com1, c->pend, c->have));
}

/* The signal that ends the guest, or 0. */
static int take_signal(struct machine *m)
{
    if (cont_seen) {
        cont_seen = 0;
        console_resume(&m->console);
    }
    if (report_seen) {
        report_seen = 0;
        vcpu_report_all(m->vcpu, m->vcpus);
        for (unsigned i = 0; i < m->disks; i++)
            disk_report(&m->disk[i]);
    }
    return signal_seen;
}

static enum run_exit exit_of_end(const struct machine *m)
{
    switch ((enum vm_end)atomic_load(&m->end)) {
    case VM_POWER_OFF:      return RUN_POWER_OFF;
    case VM_RESET:          return RUN_RESET;
    case VM_TRIPLE_FAULT:   return RUN_TRIPLE_FAULT;
    default:                return RUN_INTERNAL;
    }
}

/* Until the guest ends or the user ends it. */
static enum run_exit machine_wait(struct machine *m)
{
    enum { END, ROOM, INPUT, COUNT };

    for (;;) {
        struct pollfd p[COUNT] = {
            [END] = { .fd = m->end_fd, .events = POLLIN },
            [ROOM] = { .fd = m->console.room_fd, .events = POLLIN },
            [INPUT] = { .fd = console_poll_fd(&m->console), .events = POLLIN },
        };
        int sig;

        poll(p, COUNT, -1);
        sig = take_signal(m);
        if (sig)
            return RUN_SIGNAL + sig;
        if (p[END].revents) {
            drain_event(m->end_fd);
            if (atomic_load(&m->end) != VM_RUNNING)
                return exit_of_end(m);
        }
        if (p[ROOM].revents)
            drain_event(m->console.room_fd);
        if (p[INPUT].revents && console_read(&m->console))
            return RUN_ESCAPE;
        feed_guest(m);
    }
}

/* All are closed; a line for each that fails. */
static bool close_disks(struct machine *m)
{
    bool good = true;

    for (unsigned i = 0; i < m->disks; i++) {
        struct blk_error e = BLK_ERROR_INIT;

        if (disk_close(&m->disk[i], &e) < 0) {
            blk_report("%s", e.text);
            good = false;
        }
    }
    m->disks = 0;
    return good;
}

/* False: a disk failed at the end. */
static bool machine_stop(struct machine *m)
{
    bool good;

    atomic_store(&m->console.closing, true);
    vcpu_stop_all(m->vcpu, m->vcpus);
    if (m->console.room_fd >= 0)
        console_close(&m->console);
    closing = 1;
    signals_to(-1);
    good = close_disks(m);
    for (unsigned i = 0; i < m->vcpus; i++)
        vcpu_fini(&m->vcpu[i]);
    return good;
}

static void machine_fini(struct machine *m)
{
    if (m->platform.pci) {
        pci_dev_fini(&m->bridge);
        pci_bus_fini(&m->pci);
        serial_fini(&m->com1);
    }
    vm_fini(&m->vm);
    mem_free(&m->mem);
    free(m->vcpu);
    free(m->disk);
    if (m->end_fd >= 0)
        close(m->end_fd);
    free(m);
}

/* One line for an end that is not the guest's own wish. */
static void explain_end(const struct machine *m, enum run_exit code, struct blk_error *e)
{
    if (code == RUN_TRIPLE_FAULT)
        blk_err(e, EFAULT, "the guest crashed its CPU (triple fault)");
    else if (code == RUN_INTERNAL)
        blk_err(e, EIO, "the guest could not go on: %s", m->end_text);
}

enum run_exit machine_run(const struct run_options *o, struct blk_error *e)
{
    struct machine *m = calloc(1, sizeof(*m));
    enum run_exit code = RUN_NOT_STARTED;
    int ret;

    if (!m) {
        blk_err(e, ENOMEM, "out of memory");
        return RUN_NOT_STARTED;
    }
    m->vm.fd = m->vm.kvm = m->end_fd = -1;
    signal_seen = cont_seen = report_seen = 0;
    signals_to(-1);
    ret = machine_init(m, o, e);
    if (ret == 0) {
        signals_to(m->end_fd);
        ret = machine_start(m, e);
    }
    if (ret == 0)
        code = machine_wait(m);
    explain_end(m, code, e);
    if (!machine_stop(m) && code != RUN_NOT_STARTED)
        code = RUN_DISK_ERROR;
    closing = 0;
    if (code == RUN_RESET && signal_seen)
        code = RUN_SIGNAL + signal_seen;
    machine_fini(m);
    return code;
}
