/*
 * kvm.c - see kvm.h.
 *
 * Interrupt routes: GSI 0-23 are the IO-APIC's pins (0-15 the two PICs' as
 * well), each MSI-X vector of a device gets its own GSI above.  KVM takes the
 * table only as a whole, so vm->lock is held from a change until KVM has it.
 */
#include "vmm-shim/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define KVM_PATH "/dev/kvm"
/* Three pages Intel's VT-x wants below 4 GiB, where nothing else is. */
#define VM_TSS_ADDR      0xfffbd000ul
#define VM_IDENTITY_ADDR 0xfffbc000ull

const struct kvm_need kvm_needs[] = {
    { KVM_CAP_USER_MEMORY, "user memory", "guest memory" },
    { KVM_CAP_IRQCHIP, "irqchip", "interrupt controllers in the kernel" },
    { KVM_CAP_PIT2, "pit2", "the timer in the kernel" },
    { KVM_CAP_IRQ_ROUTING, "irq routing", "message-signalled interrupts" },
    { KVM_CAP_SIGNAL_MSI, "signal msi", "message-signalled interrupts" },
    { KVM_CAP_IRQFD, "irqfd", "disk interrupts without a vCPU" },
    { KVM_CAP_IOEVENTFD, "ioeventfd", "disk requests without a vCPU" },
    { KVM_CAP_EXT_CPUID, "ext cpuid", "the guest's CPU model" },
    { KVM_CAP_SET_TSS_ADDR, "set tss address", "real mode on Intel CPUs" },
    { KVM_CAP_IMMEDIATE_EXIT, "immediate exit", "stopping a vCPU" },
    { 0, NULL, NULL },
};

static int open_error(int err, struct blk_error *e)
{
    blk_error_hint(e, "run 'platter-run --check-host' to see what is missing and what to do");
    switch (err) {
    case ENOENT:
        return blk_err(e, err, "%s does not exist: the kvm module is not loaded, or this "
                       "machine offers no hardware virtualization", KVM_PATH);
    case EACCES:
    case EPERM:
        return blk_err(e, err, "%s: permission denied: the user must be in the group that owns "
                       "it (usually kvm)", KVM_PATH);
    case ENODEV:
    case ENXIO:
        return blk_err(e, err, "%s exists but no kvm module serves it: no hardware "
                       "virtualization here, or it is switched off in the firmware", KVM_PATH);
    default:
        return blk_err_errno(e, err, "Could not open %s", KVM_PATH);
    }
}

int kvm_open(struct blk_error *e)
{
    int fd = open(KVM_PATH, O_RDWR | O_CLOEXEC);
    int version;

    if (fd < 0)
        return open_error(errno, e);
    version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        close(fd);
        return blk_err(e, ENOTSUP, "%s is not a usable KVM (API version %d, needed %d)", KVM_PATH,
                       version, KVM_API_VERSION);
    }
    for (const struct kvm_need *n = kvm_needs; n->name; n++) {
        if (ioctl(fd, KVM_CHECK_EXTENSION, (unsigned long)n->cap) <= 0) {
            close(fd);
            return blk_err(e, ENOTSUP, "this kernel's KVM lacks '%s' (needed for %s)", n->name,
                           n->use);
        }
    }
    return fd;
}

/* ---- set-up -------------------------------------------------------------------- */

static int vm_create(struct vm *vm, struct blk_error *e)
{
    struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
    uint64_t identity = VM_IDENTITY_ADDR;
    int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    int max = ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);

    do {
        vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
    } while (vm->fd < 0 && errno == EINTR);
    if (vm->fd < 0)
        return blk_err_errno(e, errno, "KVM could not create a virtual machine");
    if (size < (int)sizeof(struct kvm_run))
        return blk_err(e, ENOTSUP, "KVM's vCPU area is too small (%d bytes)", size);
    vm->run_size = (size_t)size;
    vm->vcpus_max = max > 0 ? (unsigned)max : 1;
    vm->doorbell_any_len =
        ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
    if (ioctl(vm->fd, KVM_SET_TSS_ADDR, VM_TSS_ADDR) < 0)
        return blk_err_errno(e, errno, "KVM_SET_TSS_ADDR failed");
    if (ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
        return blk_err_errno(e, errno, "KVM_SET_IDENTITY_MAP_ADDR failed");
    if (ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return blk_err_errno(e, errno, "KVM could not create the interrupt controllers");
    if (ioctl(vm->fd, KVM_CREATE_PIT2, &pit) < 0)
        return blk_err_errno(e, errno, "KVM could not create the timer");
    return 0;
}

int vm_init(struct vm *vm, struct blk_error *e)
{
    int ret;

    memset(vm, 0, sizeof(*vm));
    vm->fd = -1;
    pthread_mutex_init(&vm->lock, NULL);
    vm->kvm = kvm_open(e);
    if (vm->kvm < 0) {
        ret = vm->kvm;
        pthread_mutex_destroy(&vm->lock);
        return ret;
    }
    vm->msi = calloc(VM_MSI_ROUTES, sizeof(vm->msi[0]));
    ret = vm->msi ? vm_create(vm, e) : blk_err(e, ENOMEM, "out of memory");
    if (ret < 0)
        vm_fini(vm);
    return ret;
}

void vm_fini(struct vm *vm)
{
    if (vm->kvm < 0)
        return;
    if (vm->fd >= 0)
        close(vm->fd);
    close(vm->kvm);
    free(vm->msi);
    vm->msi = NULL;
    vm->fd = vm->kvm = -1;
    pthread_mutex_destroy(&vm->lock);
}

int vm_map(struct vm *vm, const struct mem *m, struct blk_error *e)
{
    for (unsigned i = 0; i < m->count; i++) {
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .guest_phys_addr = m->region[i].gpa,
            .memory_size = m->region[i].size,
            .userspace_addr = (uintptr_t)m->region[i].hva,
        };

        if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
            return blk_err_errno(e, errno, "KVM refused %llu bytes of guest memory at 0x%llx",
                                 (unsigned long long)slot.memory_size,
                                 (unsigned long long)slot.guest_phys_addr);
    }
    return 0;
}

void vm_irq_line(struct vm *vm, unsigned irq, bool level)
{
    struct kvm_irq_level l = { .irq = irq, .level = level };

    /* Fails only on a bad VM or line. */
    ioctl(vm->fd, KVM_IRQ_LINE, &l);
}

/* ---- routes and irqfds ----------------------------------------------------------- */

static struct kvm_irq_routing_entry *route_chip(struct kvm_irq_routing *t, unsigned gsi,
                                                unsigned chip, unsigned pin)
{
    struct kvm_irq_routing_entry *r = &t->entries[t->nr++];

    r->gsi = gsi;
    r->type = KVM_IRQ_ROUTING_IRQCHIP;
    r->u.irqchip.irqchip = chip;
    r->u.irqchip.pin = pin;
    return r;
}

/* Under vm->lock. */
static int routes_commit(struct vm *vm)
{
    size_t room = VM_IOAPIC_PINS + 16 + vm->msis;
    struct kvm_irq_routing *t = calloc(1, sizeof(*t) + room * sizeof(t->entries[0]));
    int ret = 0;

    if (!t)
        return -ENOMEM;
    for (unsigned pin = 0; pin < VM_IOAPIC_PINS; pin++)
        route_chip(t, pin, KVM_IRQCHIP_IOAPIC, pin);
    for (unsigned irq = 0; irq < 16; irq++)
        route_chip(t, irq, irq < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, irq % 8);
    for (unsigned i = 0; i < vm->msis; i++) {
        struct kvm_irq_routing_entry *r = &t->entries[t->nr++];

        r->gsi = VM_IOAPIC_PINS + i;
        r->type = KVM_IRQ_ROUTING_MSI;
        r->u.msi.address_lo = (uint32_t)vm->msi[i].addr;
        r->u.msi.address_hi = (uint32_t)(vm->msi[i].addr >> 32);
        r->u.msi.data = vm->msi[i].data;
    }
    if (ioctl(vm->fd, KVM_SET_GSI_ROUTING, t) < 0)
        ret = -errno;
    free(t);
    return ret;
}

static int irqfd_set(struct vm *vm, int fd, int gsi, bool on)
{
    struct kvm_irqfd f = {
        .fd = (uint32_t)fd,
        .gsi = (uint32_t)gsi,
        .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
    };

    return ioctl(vm->fd, KVM_IRQFD, &f) < 0 ? -errno : 0;
}

static int msi_bind_locked(struct vm *vm, int fd, uint64_t addr, uint32_t data, int *route)
{
    bool fresh = *route < 0;
    struct vm_msi *msi;
    unsigned i = fresh ? vm->msis : (unsigned)*route - VM_IOAPIC_PINS;
    int ret;

    if (i >= VM_MSI_ROUTES)
        return -ENOSPC;
    msi = &vm->msi[i];
    if (fresh || msi->addr != addr || msi->data != data) {
        struct vm_msi old = *msi;

        msi->addr = addr;
        msi->data = data;
        vm->msis += fresh;
        ret = routes_commit(vm);
        if (ret < 0) {
            vm->msis -= fresh;
            *msi = old;
            return ret;
        }
        *route = (int)(VM_IOAPIC_PINS + i);
    }
    if (msi->bound)
        return 0;
    ret = irqfd_set(vm, fd, *route, true);
    msi->bound = ret == 0;
    return ret;
}

static int vm_msi_bind(void *arg, int fd, uint64_t addr, uint32_t data, int *route)
{
    struct vm *vm = arg;
    int ret;

    pthread_mutex_lock(&vm->lock);
    ret = msi_bind_locked(vm, fd, addr, data, route);
    pthread_mutex_unlock(&vm->lock);
    return ret;
}

static void vm_msi_unbind(void *arg, int fd, int route)
{
    struct vm *vm = arg;

    if (route < (int)VM_IOAPIC_PINS)
        return;
    pthread_mutex_lock(&vm->lock);
    /* KVM returns when no injection of this irqfd is running any more. */
    irqfd_set(vm, fd, route, false);
    vm->msi[(unsigned)route - VM_IOAPIC_PINS].bound = false;
    pthread_mutex_unlock(&vm->lock);
}

/* ---- doorbells ---------------------------------------------------------------------- */

static int doorbell_set(struct vm *vm, uint64_t gpa, unsigned len, int fd, bool on)
{
    struct kvm_ioeventfd d = {
        .addr = gpa,
        .len = vm->doorbell_any_len ? 0 : len,
        .fd = fd,
        .flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
    };

    return ioctl(vm->fd, KVM_IOEVENTFD, &d) < 0 ? -errno : 0;
}

static int vm_doorbell_add(void *arg, uint64_t gpa, unsigned len, int fd)
{
    return doorbell_set(arg, gpa, len, fd, true);
}

static void vm_doorbell_del(void *arg, uint64_t gpa, unsigned len, int fd)
{
    doorbell_set(arg, gpa, len, fd, false);
}

const struct pci_host_ops vm_pci_ops = {
    .msi_bind = vm_msi_bind,
    .msi_unbind = vm_msi_unbind,
    .doorbell_add = vm_doorbell_add,
    .doorbell_del = vm_doorbell_del,
};
