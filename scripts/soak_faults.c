/* Preloaded (LD_PRELOAD): counts every call that changes a file below one folder, writes them down, and lets the process
 * die, or the call fail, at the n-th of them. Used by soak_faults.py, which compiles it and arms it in forked processes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, FAIL_ONCE, FAIL_FROM_THEN_ON };

static int armed, mode, failure, journal = -1;
static long target, counter;
static char root[PATH_MAX];

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

/* From now on: calls on paths that begin with `folder`; journal_fd: -1, or where to write them down. */
void faults_arm(const char *folder, int how, long n, int error, int journal_fd) {
    strncpy(root, folder, sizeof root - 1);
    mode = how; target = n; failure = error; journal = journal_fd; counter = 0; armed = 1;
}

long faults_disarm(void) { armed = 0; return counter; }

static void absolute(char *out, int dirfd, const char *path) {
    char at[PATH_MAX] = "", link[64];
    if (path[0] != '/') {
        ssize_t n;
        if (dirfd == AT_FDCWD) strcpy(link, "/proc/self/cwd"); else snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        n = readlink(link, at, sizeof at - 2);
        at[n < 0 ? 0 : n] = 0;
        strcat(at, "/");
    }
    snprintf(out, PATH_MAX, "%s%s", at, path);
}

static void of_descriptor(char *out, int fd) {
    char link[64];
    ssize_t n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, out, PATH_MAX - 1);
    out[n < 0 ? 0 : n] = 0;
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

static void note(const char *what, const char *path, const char *other, long offset, const void *data, size_t n) {
    static ssize_t (*out)(int, const void *, size_t);
    char line[2 * PATH_MAX + 100];
    int length;
    if (journal < 0) return;
    if (!out) out = dlsym(RTLD_NEXT, "write");
    length = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\t%zu\n", what, path, other, offset, data ? n : 0);
    if (out(journal, line, length) != length || (data && n && out(journal, data, n) != (ssize_t)n)) die();
}

/* Count a call and return what is to be done with it: 0 the call itself. */
static int due(const char *what, const char *path, const char *other, long offset, const void *data, size_t n, int grows) {
    size_t length = strlen(root);
    if (!armed || strncmp(path, root, length) || (path[length] != '/' && path[length] != 0)) return 0;
    counter++;
    if (mode == COUNT) note(what, path, other, offset, data, n);
    if (mode == FAIL_FROM_THEN_ON) return counter >= target && grows ? FAIL_ONCE : 0;
    if (mode == COUNT || counter != target) return 0;
    if (mode == KILL) die();
    return mode;
}

/* A call that is done whole or not at all: torn, the process dies right after it. */
#define WHOLE(call, ...) do { \
        int todo = due(__VA_ARGS__); \
        if (todo == FAIL_ONCE) { errno = failure; return -1; } \
        if (todo == TEAR) { (void)call; die(); } \
        return call; \
    } while (0)

static int opening(int dirfd, const char *path, int flags, int (*again)(int, const char *, int, mode_t), mode_t m) {
    char whole[PATH_MAX];
    struct stat found;
    int there, todo = 0;
    if (!armed || (flags & O_TMPFILE) == O_TMPFILE || !(flags & (O_CREAT | O_TRUNC))) return again(dirfd, path, flags, m);
    absolute(whole, dirfd, path);
    there = stat(whole, &found) == 0;
    if (!there && (flags & O_CREAT)) todo = due("create", whole, "", 0, NULL, 0, 1);
    else if (there && (flags & O_TRUNC) && found.st_size) todo = due("truncate", whole, "", 0, NULL, 0, 0);
    if (todo == FAIL_ONCE) { errno = failure; return -1; }
    if (todo == TEAR) { again(dirfd, path, flags, m); die(); }
    return again(dirfd, path, flags, m);
}

static int real_openat(int d, const char *p, int f, mode_t m) { REAL(openat); return real(d, p, f, m); }

#define MODE(flags) mode_t m = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); m = va_arg(a, int); va_end(a); }
int open(const char *p, int flags, ...) { MODE(flags) return opening(AT_FDCWD, p, flags, real_openat, m); }
int open64(const char *p, int flags, ...) { MODE(flags) return opening(AT_FDCWD, p, flags | O_LARGEFILE, real_openat, m); }
int openat(int d, const char *p, int flags, ...) { MODE(flags) return opening(d, p, flags, real_openat, m); }
int openat64(int d, const char *p, int flags, ...) { MODE(flags) return opening(d, p, flags | O_LARGEFILE, real_openat, m); }
int creat(const char *p, mode_t m) { return opening(AT_FDCWD, p, O_CREAT | O_WRONLY | O_TRUNC, real_openat, m); }

static long position(int fd) {
    struct stat found;
    if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &found) ? 0 : found.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    char path[PATH_MAX];
    if (!armed || fd == journal) return real(fd, data, n);
    of_descriptor(path, fd);
    switch (due("write", path, "", position(fd), data, n, 1)) {
        case TEAR: if (real(fd, data, n / 2) < 0) {} die();
        case FAIL_ONCE: errno = failure; return -1;
    }
    return real(fd, data, n);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL(pwrite);
    char path[PATH_MAX];
    if (!armed) return real(fd, data, n, at);
    of_descriptor(path, fd);
    switch (due("write", path, "", at, data, n, 1)) {
        case TEAR: if (real(fd, data, n / 2, at) < 0) {} die();
        case FAIL_ONCE: errno = failure; return -1;
    }
    return real(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return pwrite(fd, data, n, at); }

ssize_t writev(int fd, const struct iovec *parts, int n) {
    ssize_t done = 0;
    REAL(writev);
    if (!armed) return real(fd, parts, n);
    for (int i = 0; i < n; i++) {
        ssize_t one = write(fd, parts[i].iov_base, parts[i].iov_len);
        if (one < 0) return done ? done : one;
        done += one;
    }
    return done;
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    REAL(mmap);
    char path[PATH_MAX];
    if (armed && fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE)) {
        of_descriptor(path, fd);
        switch (due("mmap", path, "", offset, NULL, 0, 1)) {
            case TEAR: die();
            case FAIL_ONCE: errno = failure; return MAP_FAILED;
        }
    }
    return real(at, n, protection, flags, fd, offset);
}

#define AT1(d, p) char one[PATH_MAX] = ""; if (armed) absolute(one, d, p)
#define AT2(d, p, e, q) AT1(d, p); char two[PATH_MAX] = ""; if (armed) absolute(two, e, q)
#define FD(fd) char one[PATH_MAX] = ""; if (armed) of_descriptor(one, fd)

int rename(const char *a, const char *b) { REAL(rename); AT2(AT_FDCWD, a, AT_FDCWD, b); WHOLE(real(a, b), "rename", two, one, 0, NULL, 0, 1); }
int renameat(int d, const char *a, int e, const char *b) { REAL(renameat); AT2(d, a, e, b); WHOLE(real(d, a, e, b), "rename", two, one, 0, NULL, 0, 1); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { REAL(renameat2); AT2(d, a, e, b); WHOLE(real(d, a, e, b, f), "rename", two, one, 0, NULL, 0, 1); }
int link(const char *a, const char *b) { REAL(link); AT2(AT_FDCWD, a, AT_FDCWD, b); WHOLE(real(a, b), "link", two, one, 0, NULL, 0, 1); }
int linkat(int d, const char *a, int e, const char *b, int f) { REAL(linkat); AT2(d, a, e, b); WHOLE(real(d, a, e, b, f), "link", two, one, 0, NULL, 0, 1); }
int symlink(const char *a, const char *b) { REAL(symlink); AT1(AT_FDCWD, b); WHOLE(real(a, b), "symlink", one, a, 0, NULL, 0, 1); }
int unlink(const char *p) { REAL(unlink); AT1(AT_FDCWD, p); WHOLE(real(p), "unlink", one, "", 0, NULL, 0, 0); }
int unlinkat(int d, const char *p, int f) { REAL(unlinkat); AT1(d, p); WHOLE(real(d, p, f), f & AT_REMOVEDIR ? "rmdir" : "unlink", one, "", 0, NULL, 0, 0); }
int rmdir(const char *p) { REAL(rmdir); AT1(AT_FDCWD, p); WHOLE(real(p), "rmdir", one, "", 0, NULL, 0, 0); }
int mkdir(const char *p, mode_t m) { REAL(mkdir); AT1(AT_FDCWD, p); WHOLE(real(p, m), "mkdir", one, "", 0, NULL, 0, 1); }
int mkdirat(int d, const char *p, mode_t m) { REAL(mkdirat); AT1(d, p); WHOLE(real(d, p, m), "mkdir", one, "", 0, NULL, 0, 1); }
int truncate(const char *p, off_t n) { REAL(truncate); AT1(AT_FDCWD, p); WHOLE(real(p, n), "truncate", one, "", n, NULL, 0, 0); }
int truncate64(const char *p, off64_t n) { return truncate(p, n); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); FD(fd); WHOLE(real(fd, n), "truncate", one, "", n, NULL, 0, 0); }
int ftruncate64(int fd, off64_t n) { return ftruncate(fd, n); }
int posix_fallocate(int fd, off_t at, off_t n) { REAL(posix_fallocate); FD(fd); WHOLE(real(fd, at, n), "allocate", one, "", at + n, NULL, 0, 1); }
int fsync(int fd) { REAL(fsync); FD(fd); WHOLE(real(fd), "fsync", one, "", 0, NULL, 0, 1); }
int fdatasync(int fd) { REAL(fdatasync); FD(fd); WHOLE(real(fd), "fsync", one, "", 0, NULL, 0, 1); }
int syncfs(int fd) { REAL(syncfs); FD(fd); WHOLE(real(fd), "syncfs", one, "", 0, NULL, 0, 1); }
