/* Makes the n-th call of some kind fail, stop half-way, or kill the process. Preloaded (LD_PRELOAD) into the process
   that tests/faults/server.py is. Only calls count that concern what is below one directory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char armed_kind[16], armed_action[16], below[4096];
static long nth = -1;
static int number, sticky;
static atomic_long calls;
static atomic_int *fired; /* memory that the server shares */

/* From the call number n of that kind on, counted from 0: once, or each time if `again`. */
void fault_arm(const char *kind, long n, const char *action, int value, int again, const char *dir, void *shared) {
    snprintf(armed_kind, sizeof armed_kind, "%s", kind);
    snprintf(armed_action, sizeof armed_action, "%s", action);
    snprintf(below, sizeof below, "%s", dir);
    number = value;
    sticky = again;
    fired = shared;
    calls = 0;
    nth = n;
}

static int is_below(const char *path) {
    size_t length = strlen(below);
    return path && strncmp(path, below, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int of_descriptor(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

enum { GO_ON, FAIL, SHORT };

static int decide(const char *kind, const char *path) {
    if (nth < 0 || (strcmp(armed_kind, kind) && strcmp(armed_kind, "any")) || !is_below(path)) return GO_ON;
    long call = calls++;
    if (sticky ? call < nth : call != nth) return GO_ON;
    if (fired) *fired = 1;
    if (!strcmp(armed_action, "signal")) {
        kill(getpid(), number);
        return GO_ON;
    }
    if (!strcmp(armed_action, "short")) return SHORT;
    errno = number;
    return FAIL;
}

static int decide_fd(const char *kind, int fd) {
    if (nth < 0) return GO_ON;
    int before = errno;
    char path[4096];
    int known = of_descriptor(fd, path);
    errno = before;
    return known ? decide(kind, path) : GO_ON;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define HALF(size) ((size) > 1 ? (size) / 2 : (size))

ssize_t write(int fd, const void *data, size_t size) {
    int what = decide_fd("write", fd);
    return what == FAIL ? -1 : NEXT(write)(fd, data, what == SHORT ? HALF(size) : size);
}

ssize_t read(int fd, void *data, size_t size) {
    int what = decide_fd("read", fd);
    return what == FAIL ? -1 : NEXT(read)(fd, data, what == SHORT ? HALF(size) : size);
}

#define PWRITE(name, offset) \
    ssize_t name(int fd, const void *data, size_t size, offset at) { \
        int what = decide_fd("write", fd); \
        return what == FAIL ? -1 : NEXT(name)(fd, data, what == SHORT ? HALF(size) : size, at); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static ssize_t shorter(int fd, const struct iovec *parts, off64_t at) {
    return NEXT(pread64)(fd, parts->iov_base, HALF(parts->iov_len), at);
}

#define PREADV(name, offset) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset at) { \
        int what = decide_fd("read", fd); \
        return what == FAIL ? -1 : what == SHORT ? shorter(fd, parts, at) : NEXT(name)(fd, parts, count, at); \
    }
PREADV(preadv, off_t)
PREADV(preadv64, off64_t)

#define PREADV2(name, offset) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset at, int flags) { \
        int what = decide_fd("read", fd); \
        return what == FAIL ? -1 : what == SHORT ? shorter(fd, parts, at) : NEXT(name)(fd, parts, count, at, flags); \
    }
PREADV2(preadv2, off_t)
PREADV2(preadv64v2, off64_t)

int fsync(int fd) { return decide_fd("sync", fd) == FAIL ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return decide_fd("sync", fd) == FAIL ? -1 : NEXT(fdatasync)(fd); }
int ftruncate64(int fd, off64_t size) { return decide_fd("truncate", fd) == FAIL ? -1 : NEXT(ftruncate64)(fd, size); }
int fallocate(int fd, int mode, off_t at, off_t size) {
    return decide_fd("reserve", fd) == FAIL ? -1 : NEXT(fallocate)(fd, mode, at, size);
}

int rename(const char *from, const char *to) {
    return decide("rename", is_below(from) ? from : to) == FAIL ? -1 : NEXT(rename)(from, to);
}
int unlink(const char *path) { return decide("unlink", path) == FAIL ? -1 : NEXT(unlink)(path); }
int rmdir(const char *path) { return decide("rmdir", path) == FAIL ? -1 : NEXT(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { return decide("mkdir", path) == FAIL ? -1 : NEXT(mkdir)(path, mode); }

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *given) {
    return decide("thread", below) == FAIL ? number : NEXT(pthread_create)(thread, how, start, given);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return decide("open", path) == FAIL ? -1 : NEXT(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
