/*
 * walls.c - limits, landlock and seccomp.
 *
 * No library: a filter is a few dozen instructions made from the lists below, and a
 * command that runs for a millisecond should not spend another on loading one.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "block/block.h"
#include "img/walls.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

static unsigned standing;

/* ---- what is said when a wall is hit ------------------------------------------------ */

static char on_time[PATH_MAX + 128], on_call[PATH_MAX + 128];

/* Only what a signal handler may do. */
static void say(const char *text)
{
    (void)!write(STDERR_FILENO, text, strlen(text));
}

static void time_is_up(int signo)
{
    say(on_time);
    _exit(1);
}

static void call_refused(int signo, siginfo_t *info, void *context)
{
    char number[16] = "0\n", *at = number + sizeof(number) - 2;

    *at = '\n';
    at[1] = 0;
    for (int n = info->si_syscall; n > 0 && at > number; n /= 10) {
        *--at = (char)('0' + n % 10);
    }
    say(on_call);
    say(at);
    _exit(1);
}

static void watch(const struct walls *w, uint64_t seconds)
{
    struct sigaction time = { .sa_handler = time_is_up };
    struct sigaction call = { .sa_sigaction = call_refused, .sa_flags = SA_SIGINFO };

    snprintf(on_time, sizeof(on_time), "%s: '%s': stopped after %llu s of processor time\n",
             blk_program, w->file, (unsigned long long)seconds);
    snprintf(on_call, sizeof(on_call), "%s: '%s': the sandbox (see --no-sandbox) does not allow "
             "system call ", blk_program, w->file);
    sigaction(SIGXCPU, &time, NULL);
    sigaction(SIGSYS, &call, NULL);
}

/* ---- limits --------------------------------------------------------------------- */

/* Lower, never higher than it is.  Returns what it is then. */
static uint64_t limit(int what, uint64_t soft, uint64_t hard)
{
    struct rlimit r;

    if (getrlimit((__rlimit_resource_t)what, &r)) {
        return RLIM_INFINITY;
    }
    r.rlim_max = BLK_MIN(r.rlim_max, (rlim_t)hard);
    r.rlim_cur = BLK_MIN(BLK_MIN(r.rlim_cur, (rlim_t)soft), r.rlim_max);
    return setrlimit((__rlimit_resource_t)what, &r) ? RLIM_INFINITY : r.rlim_cur;
}

static void raise_limits(const struct walls *w)
{
    uint64_t seconds = limit(RLIMIT_CPU, w->cpu_seconds, w->cpu_seconds + 5);

    limit(RLIMIT_CORE, 0, 0);
    standing |= seconds != RLIM_INFINITY ? WALL_CPU : 0;
    if (!SANITIZED && limit(RLIMIT_DATA, w->memory_bytes, w->memory_bytes) != RLIM_INFINITY) {
        standing |= WALL_MEMORY;
    }
    watch(w, seconds);
}

/* ---- landlock ------------------------------------------------------------------- */

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

/* The kernel's interface, which older headers lack.  What is handled and not allowed
 * again is denied. */
enum {
    LL_WRITE_FILE = 1 << 1, LL_READ_FILE = 1 << 2, LL_READ_DIR = 1 << 3, LL_TRUNCATE = 1 << 14,
    LL_ABI_1 = (1 << 13) - 1, LL_ABI_2 = (1 << 14) - 1, LL_ABI_3 = (1 << 15) - 1,
    LL_FILE = LL_WRITE_FILE | LL_READ_FILE | LL_TRUNCATE,   /* means something for files */
    LL_PATH_BENEATH = 1, LL_VERSION = 1,
};
struct ll_path_beneath {
    uint64_t allowed;
    int32_t parent_fd;
} __attribute__((packed));

static void allow(int ruleset, const char *path, uint64_t access)
{
    struct ll_path_beneath rule = { .parent_fd = open(path, O_PATH | O_CLOEXEC) };
    struct stat st;

    if (rule.parent_fd < 0) {
        return;                 /* then nobody can open it */
    }
    if (fstat(rule.parent_fd, &st) == 0) {
        rule.allowed = access & (S_ISDIR(st.st_mode) ? ~0ull : (uint64_t)LL_FILE);
        syscall(SYS_landlock_add_rule, ruleset, LL_PATH_BENEATH, &rule, 0u);
    }
    close(rule.parent_fd);
}

/* A path's directory, as far as it stands in the name. */
static void allow_directory(int ruleset, const char *path, uint64_t access)
{
    const char *slash = strrchr(path, '/');
    char dir[PATH_MAX];
    int len = slash ? (int)(slash + 1 - path) : 0;

    if (snprintf(dir, sizeof(dir), "%.*s", len, path) < (int)sizeof(dir)) {
        allow(ruleset, len ? dir : ".", access);
    }
}

static void raise_landlock(const struct walls *w)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, (size_t)0, (unsigned)LL_VERSION);
    uint64_t handled = abi >= 3 ? LL_ABI_3 : abi == 2 ? LL_ABI_2 : LL_ABI_1;
    uint64_t look = LL_READ_FILE | LL_READ_DIR;
    uint64_t change = (LL_WRITE_FILE | LL_TRUNCATE) & handled;
    int fd = abi > 0 ? (int)syscall(SYS_landlock_create_ruleset, &handled, sizeof(handled), 0u) : -1;

    if (fd < 0) {
        return;
    }
    allow(fd, w->file, look | (w->writable ? change : 0));
    allow(fd, "/dev/null", LL_READ_FILE);       /* where the locks are tried */
    if (w->others) {
        allow(fd, "/", look);
    }
    if (w->beside) {
        allow_directory(fd, w->file, change);
    }
    standing |= syscall(SYS_landlock_restrict_self, fd, 0u) == 0 ? WALL_LANDLOCK : 0;
    close(fd);
}

/* ---- seccomp -------------------------------------------------------------------- */

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#endif

#if defined(MACHINE)
/* What the library and the C library do while they examine an image: read, write, lock
 * and ask about descriptors, memory, threads, time.  Opening is landlock's affair. */
static const short allowed[] = {
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev,
    SYS_preadv2, SYS_pwritev2, SYS_lseek, SYS_close, SYS_openat, SYS_fstat, SYS_newfstatat,
    SYS_statx, SYS_fstatfs, SYS_fsync, SYS_fdatasync, SYS_ftruncate, SYS_fallocate,
    SYS_fadvise64, SYS_fcntl, SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_brk, SYS_madvise,
    SYS_mlock, SYS_munlock, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack,
    SYS_tgkill, SYS_restart_syscall, SYS_futex, SYS_set_robust_list, SYS_rseq, SYS_clone,
    SYS_sched_yield, SYS_sched_getaffinity, SYS_exit, SYS_exit_group, SYS_epoll_create1,
    SYS_epoll_ctl, SYS_epoll_pwait, SYS_eventfd2, SYS_ppoll,
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_gettimeofday, SYS_getrandom,
    SYS_getpid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getrusage,
    SYS_sysinfo, SYS_seccomp,           /* another filter only takes more away: walls_shut() */
#if defined(__x86_64__)                 /* old ones that later machines never had */
    SYS_stat, SYS_poll, SYS_epoll_wait,
#endif
};

/* Refused with an error that callers know how to live with; anything else that is not
 * allowed ends the process. */
static const struct { short call, err; } declined[] = {
    { SYS_clone3, ENOSYS },             /* the C library then takes clone() */
    { SYS_io_uring_setup, EPERM },      /* it would go past this filter */
    { SYS_faccessat, EACCES }, { SYS_readlinkat, EACCES },
#if defined(__x86_64__)
    { SYS_access, EACCES }, { SYS_readlink, EACCES },
#endif
};

/* Refused with EACCES where one of these bits is set in an argument. */
static const struct { short call, arg; uint32_t bits; } without[] = {
    { SYS_openat, 2, O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY) },
    { SYS_mmap, 2, PROT_EXEC }, { SYS_mmap, 3, MAP_SHARED }, { SYS_mprotect, 2, PROT_EXEC },
};

/* ioctl: nothing that types into a terminal. */
static const uint32_t ioctls[] = {
    TCGETS, TIOCGWINSZ, FS_IOC_FSGETXATTR, (uint32_t)BLKGETSIZE64, BLKSSZGET, BLKDISCARD, BLKZEROOUT,
};
/* fcntl: nothing that sends signals. */
static const uint32_t fcntls[] = {
    F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_OFD_GETLK, F_OFD_SETLK, F_DUPFD_CLOEXEC,
};

#define WORDS 16                        /* of 32 system call numbers */

struct filter {
    struct sock_filter code[160];
    unsigned short len;
};

static void put(struct filter *f, unsigned code, uint32_t k, unsigned yes, unsigned no)
{
    assert(f->len < BLK_ARRAY_SIZE(f->code));   /* or there would be no filter */
    f->code[f->len++] = (struct sock_filter){ (uint16_t)code, (uint8_t)yes, (uint8_t)no, k };
}

static void load(struct filter *f, size_t at)
{
    put(f, BPF_LD | BPF_W | BPF_ABS, (uint32_t)at, 0, 0);
}

static void load_arg(struct filter *f, unsigned i)
{
    load(f, offsetof(struct seccomp_data, args) + i * 8);       /* the low half */
}

static void ret(struct filter *f, uint32_t what)
{
    put(f, BPF_RET | BPF_K, what, 0, 0);
}

/* The accumulator holds the call's number: if it is this one, the next n are run. */
static void if_call(struct filter *f, uint32_t call, unsigned n)
{
    load(f, offsetof(struct seccomp_data, nr));
    put(f, BPF_JMP | BPF_JEQ | BPF_K, call, 0, n);
}

static void add_choice(struct filter *f, uint32_t call, unsigned arg, const uint32_t *values,
                       unsigned n, int err)
{
    if_call(f, call, n + 3);
    load_arg(f, arg);
    for (unsigned i = 0; i < n; i++) {
        put(f, BPF_JMP | BPF_JEQ | BPF_K, values[i], n - i, 0);
    }
    ret(f, SECCOMP_RET_ERRNO | (uint32_t)err);
    ret(f, SECCOMP_RET_ALLOW);
}

static void add_arguments(struct filter *f, bool writable)
{
    const uint32_t me = (uint32_t)getpid(), none = 0, thread = CLONE_THREAD;

    for (size_t i = 0; i < BLK_ARRAY_SIZE(without); i++) {
        uint32_t bits = without[i].bits;
        bits |= without[i].call == SYS_openat && !writable ? O_WRONLY | O_RDWR : 0;
        if_call(f, (uint32_t)without[i].call, 3);
        load_arg(f, (unsigned)without[i].arg);
        put(f, BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1);
        ret(f, SECCOMP_RET_ERRNO | EACCES);
    }
    add_choice(f, SYS_ioctl, 1, ioctls, BLK_ARRAY_SIZE(ioctls), ENOTTY);
    add_choice(f, SYS_fcntl, 1, fcntls, BLK_ARRAY_SIZE(fcntls), EPERM);
    add_choice(f, SYS_tgkill, 0, &me, 1, EPERM);        /* abort() */
    if_call(f, SYS_prlimit64, 5);                       /* asking, not setting */
    load(f, offsetof(struct seccomp_data, args) + 2 * 8);
    put(f, BPF_JMP | BPF_JEQ | BPF_K, none, 0, 2);
    load(f, offsetof(struct seccomp_data, args) + 2 * 8 + 4);
    put(f, BPF_JMP | BPF_JEQ | BPF_K, none, 1, 0);
    ret(f, SECCOMP_RET_ERRNO | EPERM);
    if_call(f, SYS_prlimit64, 1);
    ret(f, SECCOMP_RET_ALLOW);
    if_call(f, SYS_clone, 3);                           /* a thread, not a process */
    load_arg(f, 0);
    put(f, BPF_JMP | BPF_JSET | BPF_K, thread, 1, 0);
    ret(f, SECCOMP_RET_TRAP);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(declined); i++) {
        if_call(f, (uint32_t)declined[i].call, 1);
        ret(f, SECCOMP_RET_ERRNO | (uint32_t)declined[i].err);
    }
}

/* The list as a bit for each number: a few comparisons, however long it is. */
static void add_allowed(struct filter *f)
{
    uint32_t mask[WORDS] = { 0 };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(allowed); i++) {
        mask[allowed[i] / 32] |= 1u << allowed[i] % 32;
    }
    load(f, offsetof(struct seccomp_data, nr));
    put(f, BPF_ALU | BPF_AND | BPF_K, 31, 0, 0);
    put(f, BPF_MISC | BPF_TAX, 0, 0, 0);
    load(f, offsetof(struct seccomp_data, nr));
    put(f, BPF_ALU | BPF_RSH | BPF_K, 5, 0, 0);
    for (unsigned i = 0; i < WORDS; i++) {
        put(f, BPF_JMP | BPF_JEQ | BPF_K, i, 0, 2);
        put(f, BPF_LD | BPF_IMM, mask[i], 0, 0);
        put(f, BPF_JMP | BPF_JA, 3 * (WORDS - 1 - i) + 1, 0, 0);
    }
    ret(f, SECCOMP_RET_TRAP);
    put(f, BPF_ALU | BPF_RSH | BPF_X, 0, 0, 0);
    put(f, BPF_JMP | BPF_JSET | BPF_K, 1, 0, 1);
    ret(f, SECCOMP_RET_ALLOW);
    ret(f, SECCOMP_RET_TRAP);
}

static bool install(struct filter *f)
{
    struct sock_fprog prog = { .len = f->len, .filter = f->code };

    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0u, &prog) == 0;
}

static void raise_seccomp(const struct walls *w)
{
    struct filter f = { .len = 0 };

    load(&f, offsetof(struct seccomp_data, arch));
    put(&f, BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 1, 0);
    ret(&f, SECCOMP_RET_TRAP);
    add_arguments(&f, w->writable);
    add_allowed(&f);
    standing |= install(&f) ? WALL_SECCOMP : 0;
}

void walls_shut(void)
{
    struct filter f = { .len = 0 };

    if (standing & WALL_SECCOMP) {
        if_call(&f, SYS_openat, 1);
        ret(&f, SECCOMP_RET_ERRNO | EACCES);
        ret(&f, SECCOMP_RET_ALLOW);     /* the first filter has its say, too */
        install(&f);
    }
}
#else
/* Nobody has looked at what other machines call. */
static void raise_seccomp(const struct walls *w)
{
}

void walls_shut(void)
{
}
#endif

void walls_raise(const struct walls *w)
{
    raise_limits(w);
    if (SANITIZED || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) {
        return;
    }
    raise_landlock(w);
    raise_seccomp(w);
}

unsigned walls_standing(void)
{
    return standing;
}
