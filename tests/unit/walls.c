/*
 * walls.c - img/walls.c: what a process behind walls can still do, and what it cannot.
 * Each attempt is made in a child of its own; its stderr is looked at here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "block/block.h"
#include "img/walls.h"

static char dir[64], image[80], other[80], fresh[80];
static char said[1024];
static pid_t parent;

/* In a child: the calls that walls are raised with are not there. */
static bool old_kernel;

static void forget_walls(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 444, 0, 2),        /* landlock_*() */
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 446, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = { .len = BLK_ARRAY_SIZE(code), .filter = code };

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &prog)) {
        _exit(99);
    }
}

/* What fn makes of it behind these walls: its result is the exit status. */
static int behind(struct walls w, int (*fn)(void))
{
    int pipefd[2], status;
    ssize_t n;
    size_t len = 0;

    w.file = image;
    w.memory_bytes = w.memory_bytes ? w.memory_bytes : 1u << 30;
    w.cpu_seconds = w.cpu_seconds ? w.cpu_seconds : 60;
    assert_int_equal(pipe(pipefd), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(pipefd[1], STDERR_FILENO);
        close(pipefd[0]);
        close(pipefd[1]);
        if (old_kernel) {
            forget_walls();
        }
        walls_raise(&w);
        _exit(fn());
    }
    close(pipefd[1]);
    while (len < sizeof(said) - 1 &&
           (n = read(pipefd[0], said + len, sizeof(said) - 1 - len)) > 0) {
        len += (size_t)n;
    }
    said[len] = 0;
    close(pipefd[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int stand(void)
{
    return (int)walls_standing();
}

/* Walls that this kernel, or a build with sanitizers, does not have are not tested. */
static bool have(int wall)
{
    bool there = behind((struct walls){ 0 }, stand) & wall;

    if (!there) {
        printf("# not tested: this wall is not there\n");
    }
    return there;
}

static int try_open(const char *path, int flags)
{
    int fd = open(path, flags, 0644);
    return fd >= 0 ? 0 : errno;
}

static int read_image(void) { return try_open(image, O_RDONLY); }
static int write_image(void) { return try_open(image, O_RDWR); }
static int read_other(void) { return try_open(other, O_RDONLY); }
static int write_other(void) { return try_open(other, O_WRONLY); }
static int create(void) { return try_open(fresh, O_WRONLY | O_CREAT | O_EXCL); }
static int cut_image(void) { return try_open(image, O_RDWR | O_TRUNC); }
static int write_elsewhere(void) { return try_open("/tmp", O_WRONLY | O_TMPFILE); }

static void files(void **state)
{
    struct walls none = { 0 }, write = { .writable = true }, others = { .others = true };
    struct walls beside = { .writable = true, .others = true, .beside = true };

    if (!have(WALL_LANDLOCK)) {
        return;
    }
    assert_int_equal(behind(none, read_image), 0);
    assert_int_equal(behind(none, write_image), EACCES);
    assert_int_equal(behind(none, read_other), EACCES);
    assert_int_equal(behind(none, write_other), EACCES);
    assert_int_equal(behind(none, create), EACCES);

    assert_int_equal(behind(write, write_image), 0);
    assert_int_equal(behind(write, read_other), EACCES);
    assert_int_equal(behind(write, write_other), EACCES);
    assert_int_equal(behind(write, create), EACCES);

    assert_int_equal(behind(others, read_image), 0);
    assert_int_equal(behind(others, read_other), 0);
    assert_int_equal(behind(others, write_image), EACCES);
    assert_int_equal(behind(others, write_other), EACCES);

    assert_int_equal(behind(beside, write_other), 0);
    assert_int_equal(behind(beside, create), EACCES);
    assert_int_equal(behind(beside, write_elsewhere), EACCES);
}

/* What seccomp alone keeps of this. */
static void flags_of_open(void **state)
{
    struct walls w = { .writable = true };

    if (!have(WALL_SECCOMP)) {
        return;
    }
    assert_int_equal(behind(w, cut_image), EACCES);
    assert_int_equal(behind(w, create), EACCES);
    assert_int_equal(behind((struct walls){ 0 }, write_image), EACCES);
}

static int shut_and_read(void)
{
    walls_shut();
    return try_open(image, O_RDONLY);
}

static void nothing_after_shut(void **state)
{
    if (!have(WALL_SECCOMP)) {
        return;
    }
    assert_int_equal(behind((struct walls){ .others = true }, shut_and_read), EACCES);
}

static int make_socket(void) { return socket(AF_INET, SOCK_STREAM, 0) < 0; }
static int make_pair(void) { int p[2]; return socketpair(AF_UNIX, SOCK_STREAM, 0, p) < 0; }
static int run_program(void) { execl("/bin/true", "true", (char *)NULL); return 0; }
static int make_process(void) { return fork() < 0; }
static int kill_parent(void) { return kill(parent, SIGCONT) != 0; }
static int trace_parent(void) { return ptrace(PTRACE_ATTACH, parent, 0, 0) < 0; }
static int delete_image(void) { return unlink(image); }
static int rename_image(void) { return rename(image, fresh); }

static void *socket_thread(void *arg)
{
    make_socket();
    return NULL;
}

static int thread_makes_socket(void)
{
    pthread_t t;

    if (pthread_create(&t, NULL, socket_thread, NULL)) {
        return 2;
    }
    pthread_join(t, NULL);
    return 0;
}

static void one_line_and_the_end(void **state)
{
    int (*const attempts[])(void) = {
        make_socket, make_pair, run_program, make_process, kill_parent, trace_parent,
        delete_image, rename_image, thread_makes_socket,
    };
    struct walls w = { .writable = true, .others = true, .beside = true };

    if (!have(WALL_SECCOMP)) {
        return;
    }
    for (size_t i = 0; i < BLK_ARRAY_SIZE(attempts); i++) {
        assert_int_equal(behind(w, attempts[i]), 1);
        assert_non_null(strstr(said, image));
        assert_non_null(strstr(said, "does not allow system call "));
        assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1);
    }
    behind(w, make_socket);
    assert_int_equal(atoi(strstr(said, "call ") + 5), SYS_socket);
}

static int soft(void)
{
    struct { char room[256]; } params = { { 0 } };
    char c = 'x';

    if (syscall(SYS_io_uring_setup, 4, &params) >= 0 || errno != EPERM) {
        return 1;
    }
    if (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED ||
        mmap(NULL, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) {
        return 2;
    }
    if (ioctl(0, TIOCSTI, &c) == 0 || errno != ENOTTY) {
        return 3;
    }
    if (fcntl(0, F_SETOWN, parent) == 0 || errno != EPERM) {
        return 4;
    }
    return syscall(SYS_tgkill, parent, parent, 0) == 0 ? 5 : 0;
}

static void refused_quietly(void **state)
{
    if (!have(WALL_SECCOMP)) {
        return;
    }
    assert_int_equal(behind((struct walls){ 0 }, soft), 0);
    assert_string_equal(said, "");
}

static void *add_one(void *arg)
{
    *(int *)arg += 1;
    return NULL;
}

/* Threads, memory, time, and asking a file about itself. */
static int ordinary_work(void)
{
    struct fsxattr x;
    pthread_t t;
    int n = 0, fd = open(image, O_RDONLY);
    char *p = malloc(32u << 20);

    if (fd < 0 || !p) {
        return 1;
    }
    memset(p, 1, 32u << 20);
    free(p);
    if (pthread_create(&t, NULL, add_one, &n) || pthread_join(t, NULL) || n != 1) {
        return 2;
    }
    if (ioctl(fd, FS_IOC_FSGETXATTR, &x) && errno != ENOTTY && errno != EOPNOTSUPP) {
        return 3;
    }
    return blk_now_ns() ? 0 : 4;
}

static void ordinary(void **state)
{
    assert_int_equal(behind((struct walls){ 0 }, ordinary_work), 0);
}

static void what_there_is_is_raised(void **state)
{
    int all = behind((struct walls){ 0 }, stand);

    old_kernel = true;
    assert_int_equal(behind((struct walls){ 0 }, stand), all & ~(WALL_LANDLOCK | WALL_SECCOMP));
    assert_int_equal(behind((struct walls){ 0 }, read_other), 0);
    assert_int_equal(behind((struct walls){ 0 }, shut_and_read), 0);
    old_kernel = false;
}

static int abort_now(void)
{
    abort();
}

static void own_signals(void **state)
{
    assert_int_equal(behind((struct walls){ 0 }, abort_now), 128 + SIGABRT);
}

static int take_memory(void)
{
    void *p = malloc(256u << 20);
    return p ? 1 : errno;
}

static void memory_has_an_end(void **state)
{
    struct walls w = { .memory_bytes = 128u << 20 };

    if (!have(WALL_MEMORY)) {
        return;
    }
    assert_int_equal(behind(w, take_memory), ENOMEM);
}

static int spin(void)
{
    while (blk_now_ns()) {
    }
    return 0;
}

static void time_has_an_end(void **state)
{
    assert_int_equal(behind((struct walls){ .cpu_seconds = 1 }, spin), 1);
    assert_non_null(strstr(said, image));
    assert_non_null(strstr(said, "stopped after 1 s of processor time\n"));
    assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1);
}

static int make_files(void **state)
{
    parent = getpid();
    snprintf(dir, sizeof(dir), "/tmp/platter-walls.XXXXXX");
    if (!mkdtemp(dir)) {
        return -1;
    }
    snprintf(image, sizeof(image), "%s/image", dir);
    snprintf(other, sizeof(other), "%s/other", dir);
    snprintf(fresh, sizeof(fresh), "%s/fresh", dir);
    close(open(image, O_CREAT | O_WRONLY, 0644));
    close(open(other, O_CREAT | O_WRONLY, 0644));
    return 0;
}

static int remove_files(void **state)
{
    unlink(image);
    unlink(other);
    unlink(fresh);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files),
        cmocka_unit_test(flags_of_open),
        cmocka_unit_test(nothing_after_shut),
        cmocka_unit_test(one_line_and_the_end),
        cmocka_unit_test(refused_quietly),
        cmocka_unit_test(ordinary),
        cmocka_unit_test(what_there_is_is_raised),
        cmocka_unit_test(own_signals),
        cmocka_unit_test(memory_has_an_end),
        cmocka_unit_test(time_has_an_end),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
