/*
 * vcpu.c - see vcpu.h.
 *
 * Stopping.  vm->stop is set, then each thread gets VCPU_SIGNAL.  Its handler
 * sets immediate_exit in the shared page, so KVM_RUN returns at once even when
 * the signal came between the check of vm->stop and the ioctl.  The signal
 * also breaks a blocked write to the console; it is sent again until the thread
 * has ended, as it may come just before a system call that blocks.
 */
#include "vmm-shim/vcpu.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vmm-shim/cpuid.h"

#define VCPU_SIGNAL SIGRTMIN
#define STOP_AGAIN_NS 20000000l

#define MSR_IA32_SYSENTER_CS  0x174u
#define MSR_IA32_SYSENTER_ESP 0x175u
#define MSR_IA32_SYSENTER_EIP 0x176u
#define MSR_IA32_MISC_ENABLE  0x1a0u
#define MSR_IA32_MTRR_DEFTYPE 0x2ffu
#define MISC_FAST_STRING      1u
#define MTRR_ENABLE_WB        (1u << 11 | 6u)

#define CR0_PE   (1u << 0)
#define CR0_ET   (1u << 4)
#define CR0_NE   (1u << 5)
#define CR0_PG   (1u << 31)
#define CR4_PAE  (1u << 5)
#define RFLAGS_IF (1u << 9)
#define APIC_IRR  0x200
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)

static __thread struct kvm_run *self_run;

/* ---- set-up -------------------------------------------------------------------- */

static int set_cpuid(struct vcpu *v, unsigned count, struct blk_error *e)
{
    struct cpuid_table t;
    bool deadline = ioctl(v->vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    int ret = cpuid_supported(v->vm->kvm, &t, e);

    if (ret < 0)
        return ret;
    cpuid_adjust(&t, v->index, count, deadline);
    if (ioctl(v->fd, KVM_SET_CPUID2, &t.head) < 0)
        return blk_err_errno(e, errno, "KVM_SET_CPUID2 failed on vCPU %u", v->index);
    return 0;
}

static int set_msrs(struct vcpu *v, struct blk_error *e)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry[5];
    } m = {
        .head.nmsrs = 5,
        .entry = {
            { .index = MSR_IA32_SYSENTER_CS },
            { .index = MSR_IA32_SYSENTER_ESP },
            { .index = MSR_IA32_SYSENTER_EIP },
            { .index = MSR_IA32_MISC_ENABLE, .data = MISC_FAST_STRING },
            { .index = MSR_IA32_MTRR_DEFTYPE, .data = MTRR_ENABLE_WB },
        },
    };
    int n = ioctl(v->fd, KVM_SET_MSRS, &m);

    if (n < 0)
        return blk_err_errno(e, errno, "KVM_SET_MSRS failed on vCPU %u", v->index);
    if (n != (int)m.head.nmsrs)
        return blk_err(e, EINVAL, "KVM refused MSR 0x%x on vCPU %u", m.entry[n].index, v->index);
    return 0;
}

int vcpu_init(struct vcpu *v, struct vm *vm, unsigned index, unsigned count,
              const struct vcpu_bus *bus, void *arg, struct blk_error *e)
{
    void *run;
    int ret;

    memset(v, 0, sizeof(*v));
    v->vm = vm;
    v->bus = bus;
    v->arg = arg;
    v->index = index;
    v->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)index);
    if (v->fd < 0)
        return blk_err_errno(e, errno, "KVM could not create vCPU %u", index);
    run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (run == MAP_FAILED) {
        ret = blk_err_errno(e, errno, "Could not map vCPU %u", index);
        goto fail;
    }
    v->run = run;
    ret = set_cpuid(v, count, e);
    if (ret == 0)
        ret = set_msrs(v, e);
    if (ret == 0)
        return 0;
fail:
    vcpu_fini(v);
    return ret;
}

void vcpu_fini(struct vcpu *v)
{
    if (v->run)
        munmap(v->run, v->vm->run_size);
    if (v->fd >= 0)
        close(v->fd);
    v->run = NULL;
    v->fd = -1;
}

static int set_state(struct vcpu *v, const struct kvm_sregs *s, const struct kvm_regs *r,
                     struct blk_error *e)
{
    if (ioctl(v->fd, KVM_SET_SREGS, s) < 0)
        return blk_err_errno(e, errno, "KVM_SET_SREGS failed on vCPU %u", v->index);
    if (ioctl(v->fd, KVM_SET_REGS, r) < 0)
        return blk_err_errno(e, errno, "KVM_SET_REGS failed on vCPU %u", v->index);
    return 0;
}

int vcpu_set_long_mode(struct vcpu *v, uint64_t rip, uint64_t rsi, uint64_t rsp, uint64_t cr3,
                       uint64_t gdt, struct blk_error *e)
{
    const struct kvm_segment code = { .limit = 0xffffffff, .selector = 0x10, .type = 11,
                                      .present = 1, .s = 1, .l = 1, .g = 1 };
    const struct kvm_segment data = { .limit = 0xffffffff, .selector = 0x18, .type = 3,
                                      .present = 1, .db = 1, .s = 1, .g = 1 };
    struct kvm_regs r = { .rip = rip, .rsi = rsi, .rsp = rsp, .rflags = 2 };
    struct kvm_sregs s;

    if (ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
        return blk_err_errno(e, errno, "KVM_GET_SREGS failed on vCPU %u", v->index);
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.gdt.base = gdt;
    s.gdt.limit = 4 * 8 - 1;
    s.idt.base = 0;
    s.idt.limit = 0;
    s.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    s.cr3 = cr3;
    s.cr4 = CR4_PAE;
    s.efer = EFER_LME | EFER_LMA;
    return set_state(v, &s, &r, e);
}

int vcpu_set_real_mode(struct vcpu *v, uint16_t ip, struct blk_error *e)
{
    struct kvm_regs r = { .rip = ip, .rflags = 2 };
    struct kvm_sregs s;

    if (ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
        return blk_err_errno(e, errno, "KVM_GET_SREGS failed on vCPU %u", v->index);
    s.cs.base = 0;
    s.cs.selector = 0;
    return set_state(v, &s, &r, e);
}

/* ---- exits ----------------------------------------------------------------------- */

static void exit_io(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;

    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        if (run->io.direction == KVM_EXIT_IO_OUT)
            v->bus->port_write(v->arg, run->io.port, data, run->io.size);
        else
            v->bus->port_read(v->arg, run->io.port, data, run->io.size);
    }
}

static void exit_mmio(struct vcpu *v)
{
    struct kvm_run *run = v->run;

    if (run->mmio.is_write)
        v->bus->mmio_write(v->arg, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    else
        v->bus->mmio_read(v->arg, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
}

static void internal_error(struct vcpu *v, const char *what, unsigned long long code)
{
    struct kvm_regs r = { 0 };
    char text[160];

    ioctl(v->fd, KVM_GET_REGS, &r);
    snprintf(text, sizeof(text), "vCPU %u: %s (0x%llx) at rip 0x%llx", v->index, what, code,
             (unsigned long long)r.rip);
    v->bus->ended(v->arg, VM_INTERNAL_ERROR, text);
}

static void exit_system_event(struct vcpu *v)
{
    switch (v->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        v->bus->ended(v->arg, VM_POWER_OFF, NULL);
        break;
    case KVM_SYSTEM_EVENT_RESET:
        v->bus->ended(v->arg, VM_RESET, NULL);
        break;
    default:
        internal_error(v, "unknown system event", v->run->system_event.type);
    }
}

/* The highest vector waiting in the local APIC, or -1. */
static int waiting_vector(const struct vcpu *v)
{
    struct kvm_lapic_state apic;

    if (ioctl(v->fd, KVM_GET_LAPIC, &apic) < 0)
        return -1;
    for (int word = 7; word >= 0; word--) {
        uint32_t bits;

        memcpy(&bits, apic.regs + APIC_IRR + 16 * word, sizeof(bits));
        if (bits)
            return 32 * word + 31 - __builtin_clz(bits);
    }
    return -1;
}

static void report(struct vcpu *v)
{
    struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };
    struct kvm_regs r = { 0 };
    struct kvm_sregs s = { 0 };
    int vector = waiting_vector(v);
    char waits[40] = "no interrupt waits";

    if (vector >= 0)
        snprintf(waits, sizeof(waits), "interrupt 0x%x waits", (unsigned)vector);
    ioctl(v->fd, KVM_GET_MP_STATE, &state);
    ioctl(v->fd, KVM_GET_REGS, &r);
    ioctl(v->fd, KVM_GET_SREGS, &s);
    blk_report("vCPU %u: %s at rip 0x%llx, rsp 0x%llx, cr3 0x%llx, interrupts %s, %s, "
               "%llu exits, the last for reason %u", v->index,
               state.mp_state == KVM_MP_STATE_HALTED ? "halted"
               : state.mp_state == KVM_MP_STATE_RUNNABLE ? "running" : "not started",
               (unsigned long long)r.rip, (unsigned long long)r.rsp, (unsigned long long)s.cr3,
               r.rflags & RFLAGS_IF ? "on" : "off", waits, (unsigned long long)v->exits,
               v->run->exit_reason);
}

/* False: this vCPU is done. */
static bool handle_exit(struct vcpu *v)
{
    struct kvm_run *run = v->run;

    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        exit_io(v);
        return true;
    case KVM_EXIT_MMIO:
        exit_mmio(v);
        return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return true;
    case KVM_EXIT_SHUTDOWN:
        v->bus->ended(v->arg, VM_TRIPLE_FAULT, NULL);
        return false;
    case KVM_EXIT_SYSTEM_EVENT:
        exit_system_event(v);
        return false;
    case KVM_EXIT_FAIL_ENTRY:
        internal_error(v, "the CPU refused to enter the guest",
                       run->fail_entry.hardware_entry_failure_reason);
        return false;
    case KVM_EXIT_INTERNAL_ERROR:
        internal_error(v, "KVM could not emulate an instruction", run->internal.suberror);
        return false;
    default:
        internal_error(v, "unexpected KVM exit", run->exit_reason);
        return false;
    }
}

static bool run_once(struct vcpu *v)
{
    if (ioctl(v->fd, KVM_RUN, 0) == 0) {
        v->exits++;
        return handle_exit(v);
    }
    switch (errno) {
    case EINTR:
    case EAGAIN:                    /* an INIT arrived */
        return true;
    default:
        internal_error(v, strerror(errno), (unsigned)errno);
        return false;
    }
}

void vcpu_run(struct vcpu *v)
{
    self_run = v->run;
    do {
        v->run->immediate_exit = 0;     /* why it was set is looked at below */
        if (atomic_exchange(&v->report, false))
            report(v);
    } while (!atomic_load(&v->vm->stop) && run_once(v));
    self_run = NULL;
}

/* ---- threads ---------------------------------------------------------------------- */

static void on_signal(int sig)
{
    if (self_run)
        self_run->immediate_exit = 1;
}

static void *thread_main(void *arg)
{
    struct vcpu *v = arg;
    char name[16];

    snprintf(name, sizeof(name), "vcpu%u", v->index % 1000u);
    pthread_setname_np(pthread_self(), name);
    vcpu_run(v);
    return NULL;
}

int vcpu_start(struct vcpu *v, struct blk_error *e)
{
    struct sigaction sa = { .sa_handler = on_signal };  /* no SA_RESTART: break writes */
    int err;

    sigaction(VCPU_SIGNAL, &sa, NULL);
    err = pthread_create(&v->thread, NULL, thread_main, v);
    if (err)
        return blk_err_errno(e, err, "Could not start a thread for vCPU %u", v->index);
    v->started = true;
    return 0;
}

void vcpu_report_all(struct vcpu *v, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        atomic_store(&v[i].report, true);
        if (v[i].started)
            pthread_kill(v[i].thread, VCPU_SIGNAL);
    }
}

static bool join_for_a_while(pthread_t thread)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += STOP_AGAIN_NS;
    if (until.tv_nsec >= 1000000000l) {
        until.tv_nsec -= 1000000000l;
        until.tv_sec++;
    }
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

void vcpu_stop_all(struct vcpu *v, unsigned count)
{
    if (count > 0)
        atomic_store(&v->vm->stop, true);
    for (unsigned i = 0; i < count; i++) {
        if (v[i].started)
            pthread_kill(v[i].thread, VCPU_SIGNAL);
    }
    for (unsigned i = 0; i < count; i++) {
        while (v[i].started && !join_for_a_while(v[i].thread))
            pthread_kill(v[i].thread, VCPU_SIGNAL);
        v[i].started = false;
    }
}
