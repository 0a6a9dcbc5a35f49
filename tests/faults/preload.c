/* A disk and a clock that fail as they are told, for a process that loads this library first (LD_PRELOAD).
 *
 * faults_use(path) maps a file of one `struct orders`, which the test may change at any time. Calls on the files below
 * `root` are counted by class; the call that brings `countdown` to zero, and the `times - 1` after it, fail: by SIGKILL,
 * an errno, a pause, or a short write. `clock` is added to the time of day.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, NAME = 4, READ = 8, OPEN = 16 };
enum { NOTHING, KILL, FAIL, PAUSE, SHORTEN };

struct orders {
    int32_t what, code, classes, times; /* of PAUSE, `code` is in microseconds */
    int32_t countdown, struck;
    int64_t clock; /* nanoseconds */
    char root[256];
};

static struct orders *orders;

int faults_use(const char *path) {
    int fd = open(path, O_RDWR);
    if (fd < 0) return -1;
    void *found = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found == MAP_FAILED) return -1;
    orders = found;
    return 0;
}

static int below(const char *path) {
    size_t length = strlen(orders->root);
    return path && length && strncmp(path, orders->root, length) == 0;
}

static int ours(int fd) {
    char link[32], path[512];
    static ssize_t (*real)(const char *, char *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "readlink");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = real(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* Whether this call is one that fails; then it is counted as struck. */
static int strikes(int class, const char *path, int fd) {
    if (!orders || orders->what == NOTHING || !(orders->classes & class)) return 0;
    int saved = errno, hit = path ? below(path) : ours(fd);
    errno = saved;
    if (!hit) return 0;
    int left = __atomic_sub_fetch(&orders->countdown, 1, __ATOMIC_SEQ_CST);
    if (left > 0 || left <= -orders->times) return 0;
    __atomic_add_fetch(&orders->struck, 1, __ATOMIC_SEQ_CST);
    return 1;
}

/* Carries the order out: whether the call must fail, with errno set. */
static int fails(int class, const char *path, int fd) {
    if (!orders || orders->what == SHORTEN || !strikes(class, path, fd)) return 0;
    if (orders->what == KILL) kill(getpid(), SIGKILL);
    if (orders->what == PAUSE) {
        struct timespec pause = {orders->code / 1000000, orders->code % 1000000 * 1000L};
        nanosleep(&pause, NULL);
    }
    if (orders->what != FAIL) return 0;
    errno = orders->code;
    return 1;
}

#define REAL(type, name, ...)                               \
    static type (*real)(__VA_ARGS__);                       \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define WRAP(type, name, class, path, fd, parameters, ...)  \
    type name parameters {                                  \
        static type(*real) parameters;                      \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        return fails(class, path, fd) ? -1 : real(__VA_ARGS__); \
    }

WRAP(int, fsync, SYNC, NULL, fd, (int fd), fd)
WRAP(int, fdatasync, SYNC, NULL, fd, (int fd), fd)
WRAP(int, syncfs, SYNC, NULL, fd, (int fd), fd)
WRAP(int, ftruncate64, WRITE, NULL, fd, (int fd, off64_t size), fd, size)
WRAP(int, fallocate, WRITE, NULL, fd, (int fd, int mode, off_t at, off_t size), fd, mode, at, size)
WRAP(int, fchmod, WRITE, NULL, fd, (int fd, mode_t mode), fd, mode)
WRAP(int, rename, NAME, from, 0, (const char *from, const char *to), from, to)
WRAP(int, link, NAME, to, 0, (const char *from, const char *to), from, to)
WRAP(int, linkat, NAME, to, 0, (int a, const char *from, int b, const char *to, int flags), a, from, b, to, flags)
WRAP(int, symlink, NAME, to, 0, (const char *from, const char *to), from, to)
WRAP(int, unlink, NAME, path, 0, (const char *path), path)
WRAP(int, unlinkat, NAME, path[0] == '/' ? path : NULL, at, (int at, const char *path, int flags), at, path, flags)
WRAP(int, rmdir, NAME, path, 0, (const char *path), path)
WRAP(int, mkdir, NAME, path, 0, (const char *path, mode_t mode), path, mode)
WRAP(int, chmod, NAME, path, 0, (const char *path, mode_t mode), path, mode)
WRAP(ssize_t, read, READ, NULL, fd, (int fd, void *to, size_t size), fd, to, size)
WRAP(ssize_t, pread64, READ, NULL, fd, (int fd, void *to, size_t size, off64_t at), fd, to, size, at)
WRAP(ssize_t, preadv64, READ, NULL, fd, (int fd, const struct iovec *to, int count, off64_t at), fd, to, count, at)
WRAP(ssize_t, preadv64v2, READ, NULL, fd, (int fd, const struct iovec *to, int count, off64_t at, int flags), fd, to,
     count, at, flags)

static size_t shortened(int fd, size_t size) {
    int shorter = size > 1 && orders && orders->what == SHORTEN && strikes(WRITE, NULL, fd);
    return shorter ? size / 2 : size;
}

ssize_t write(int fd, const void *from, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    return fails(WRITE, NULL, fd) ? -1 : real(fd, from, shortened(fd, size));
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    return fails(WRITE, NULL, fd) ? -1 : real(fd, from, shortened(fd, size), at);
}

static int opening(int flags) {
    return OPEN | (flags & (O_CREAT | O_TRUNC) ? NAME : 0) | ((flags & O_ACCMODE) != O_RDONLY ? WRITE : 0);
}

int open64(const char *path, int flags, ...) {
    REAL(int, open64, const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return fails(opening(flags), path, 0) ? -1 : real(path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    REAL(int, openat64, int, const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return fails(opening(flags), path[0] == '/' ? path : NULL, at) ? -1 : real(at, path, flags, mode);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int done = real(clock, now);
    if (done == 0 && orders && orders->clock && clock == CLOCK_REALTIME) {
        int64_t moved = now->tv_sec * 1000000000LL + now->tv_nsec + orders->clock;
        now->tv_sec = moved / 1000000000LL;
        now->tv_nsec = moved % 1000000000LL;
    }
    return done;
}
