/* A layer between a process and its disk (LD_PRELOAD): keeps a journal of what is written below the watched directories, and
 * makes chosen operations fail, stop short, or be the last thing that the process ever does.
 *
 *   FAULT_DISK_WATCH    absolute directories, ':' between them
 *   FAULT_DISK_JOURNAL  file that gets one record an operation (fault_disk.py reads it)
 *   FAULT_DISK_CONTROL  file of sizeof(struct control) bytes, mapped shared: the harness arms faults in it
 *
 * The real operations are carried out, but fsync is not passed on: what a power cut leaves is computed from the journal, so the real
 * disk's promises do not matter. One lock makes operation and record one step. Every operation goes to the kernel by syscall(2),
 * so nothing here depends on the order in which libraries are found. What is not modelled (a shared writable mapping, fallocate)
 * aborts the process: better no result than a wrong one. SQLite's WAL-index ("-shm") is such a mapping; it is rebuilt after a crash
 * and exempt: the harness leaves nothing or noise in its place.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FDS 65536
#define EXPORT __attribute__((visibility("default")))

enum operation { OP_CREATE = 1, OP_WRITE, OP_TRUNCATE, OP_SYNC, OP_SYNC_FAILED, OP_RENAME, OP_LINK, OP_UNLINK, OP_MKDIR, OP_RMDIR, OP_SYNC_DIRECTORY };
enum class { CLASS_WRITE = 1, CLASS_SYNC = 2, CLASS_NAME = 4, CLASS_READ = 8 };
enum action { ACTION_NONE, ACTION_KILL, ACTION_FAIL, ACTION_SHORT, ACTION_STOP /* killed before it, and no trace of it */ };

struct control {             /* little-endian, as fault_disk.py packs it */
    int64_t clock_offset_ns; /* added to the wall clock */
    uint64_t operations;     /* counted by this layer: everything but reads */
    uint32_t action;
    uint32_t classes;
    int32_t countdown; /* matching operations to let pass */
    int32_t error;     /* errno of ACTION_FAIL */
    int32_t repeat;    /* matching operations to hit; negative: all from then on */
    uint32_t fired;
    uint32_t busy; /* between an operation's beginning and its record */
    char suffix[32]; /* path must end so; empty: any */
};

struct record {
    uint8_t operation;
    uint8_t in_flight; /* the process was killed before the kernel saw it */
    uint16_t path_bytes;
    uint16_t other_bytes;
    uint16_t reserved;
    uint64_t inode;
    int64_t offset;
    uint64_t data_bytes;
};

struct watched {
    int kind; /* 0 none, 1 file, 2 directory */
    ino_t inode;
    dev_t device;
    char *path;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct watched table[FDS];
static struct control *control;
static int journal = -1;
static char *watch;

static void enter(void) {
    pthread_mutex_lock(&lock);
    if (control) control->busy = 1;
}

static void leave(void) {
    if (control) control->busy = 0;
    pthread_mutex_unlock(&lock);
}

static void fatal(const char *why, const char *path) {
    dprintf(2, "fault_disk: %s: %s\n", why, path ? path : "");
    abort();
}

__attribute__((constructor)) static void start(void) {
    const char *journal_path = getenv("FAULT_DISK_JOURNAL"), *control_path = getenv("FAULT_DISK_CONTROL");
    const char *directories = getenv("FAULT_DISK_WATCH");
    if (!journal_path || !control_path || !directories) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, control_path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) fatal("no control file", control_path);
    void *page = (void *)syscall(SYS_mmap, NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) fatal("control file cannot be mapped", control_path);
    syscall(SYS_close, fd);
    fd = (int)syscall(SYS_openat, AT_FDCWD, journal_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) fatal("journal cannot be opened", journal_path);
    journal = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 1000); /* out of the way of the process's own numbers */
    if (journal < 0) journal = fd; else syscall(SYS_close, fd);
    control = page;
    watch = strdup(directories);
}

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return tail <= length && strcmp(text + length - tail, end) == 0;
}

/* Absolute path, if it is below a watched directory (or is one), in `absolute`; 0 if not. */
static int is_watched(int directory, const char *path, char *absolute) {
    if (!watch || !path) return 0;
    if (path[0] == '/') {
        if (snprintf(absolute, PATH_MAX, "%s", path) >= PATH_MAX) return 0;
    } else {
        char base[PATH_MAX];
        if (directory == AT_FDCWD) {
            if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
            if (length < 0) return 0;
            base[length] = 0;
        }
        if (strlen(base) + strlen(path) + 2 > PATH_MAX) return 0;
        strcpy(absolute, base);
        strcat(absolute, "/");
        strcat(absolute, path);
    }
    for (const char *one = watch; *one;) {
        size_t length = strcspn(one, ":");
        if (strncmp(absolute, one, length) == 0 && (absolute[length] == '/' || absolute[length] == 0)) return !ends_with(absolute, "-shm");
        one += length;
        if (*one == ':') one++;
    }
    return 0;
}

static struct watched *entry(int fd) {
    if (!control || fd < 0 || fd >= FDS || !table[fd].kind) return NULL;
    struct stat now;
    /* The number may have been closed behind our back, inside libc. */
    if (syscall(SYS_fstat, fd, &now) < 0 || now.st_ino != table[fd].inode || now.st_dev != table[fd].device) {
        free(table[fd].path);
        table[fd].kind = 0;
        return NULL;
    }
    return &table[fd];
}

static void put(const void *bytes, size_t length) {
    const char *next = bytes;
    while (length) {
        ssize_t written = syscall(SYS_write, journal, next, length);
        if (written <= 0) fatal("journal cannot be written", NULL);
        next += written;
        length -= (size_t)written;
    }
}

static void note(enum operation operation, int in_flight, ino_t inode, const char *path, const char *other, off_t offset,
                 const void *data, size_t bytes) {
    struct record record = {.operation = operation, .in_flight = (uint8_t)in_flight, .inode = inode, .offset = offset, .data_bytes = bytes};
    record.path_bytes = path ? (uint16_t)strlen(path) : 0;
    record.other_bytes = other ? (uint16_t)strlen(other) : 0;
    put(&record, sizeof record);
    if (path) put(path, record.path_bytes);
    if (other) put(other, record.other_bytes);
    if (bytes) put(data, bytes);
}

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

/* What is to happen to an operation of this class on this path; under the lock. */
static enum action due(enum class class, const char *path) {
    if (class != CLASS_READ) control->operations++;
    if (control->action == ACTION_NONE || !(control->classes & class) || !ends_with(path, control->suffix)) return ACTION_NONE;
    if (control->countdown-- > 0) return ACTION_NONE;
    control->countdown = 0;
    if (control->repeat == 0) return ACTION_NONE;
    if (control->repeat > 0) control->repeat--;
    control->fired++;
    if (control->action == ACTION_STOP) die();
    return control->action;
}

static int failed(void) {
    errno = control->error;
    return -1;
}

static int opened(int directory, const char *path, int flags, mode_t mode) {
    char absolute[PATH_MAX];
    if (!control || (flags & O_PATH) || !is_watched(directory, path, absolute)) return (int)syscall(SYS_openat, directory, path, flags, mode);
    enter();
    struct stat before, now;
    int existed = syscall(SYS_newfstatat, AT_FDCWD, absolute, &before, 0) == 0;
    int creates = (flags & O_CREAT) && !existed, truncates = (flags & O_TRUNC) && existed && before.st_size > 0;
    int result = -1;
    if (creates || truncates) switch (due(creates ? CLASS_NAME : CLASS_WRITE, absolute)) {
        case ACTION_KILL: die(); break;
        case ACTION_FAIL: case ACTION_SHORT: result = failed(); goto out;
        case ACTION_NONE: case ACTION_STOP: break;
    }
    result = (int)syscall(SYS_openat, directory, path, flags, mode);
    if (result >= 0 && result < FDS && syscall(SYS_fstat, result, &now) == 0) {
        free(table[result].path);
        table[result].path = NULL;
        table[result].kind = S_ISDIR(now.st_mode) ? 2 : S_ISREG(now.st_mode) ? 1 : 0;
        table[result].inode = now.st_ino;
        table[result].device = now.st_dev;
        table[result].path = strdup(absolute);
        if (creates) note(OP_CREATE, 0, now.st_ino, absolute, NULL, 0, NULL, 0);
        if (truncates) note(OP_TRUNCATE, 0, now.st_ino, absolute, NULL, 0, NULL, 0);
    }
out:;
    int error = errno;
    leave();
    errno = error;
    return result;
}

static mode_t mode_of(int flags, va_list arguments) { return (flags & (O_CREAT | O_TMPFILE)) ? va_arg(arguments, mode_t) : 0; }

#define OPEN(name) \
    EXPORT int name(const char *path, int flags, ...) { \
        va_list arguments; va_start(arguments, flags); mode_t mode = mode_of(flags, arguments); va_end(arguments); \
        return opened(AT_FDCWD, path, flags, mode); \
    }
#define OPENAT(name) \
    EXPORT int name(int directory, const char *path, int flags, ...) { \
        va_list arguments; va_start(arguments, flags); mode_t mode = mode_of(flags, arguments); va_end(arguments); \
        return opened(directory, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
EXPORT int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

EXPORT int close(int fd) {
    if (fd == journal && journal >= 0) return 0;
    enter();
    if (fd >= 0 && fd < FDS && table[fd].kind) {
        free(table[fd].path);
        table[fd].path = NULL;
        table[fd].kind = 0;
    }
    int result = (int)syscall(SYS_close, fd), error = errno;
    leave();
    errno = error;
    return result;
}

/* `offset` negative: at the file's own position. */
static ssize_t written(int fd, const void *data, size_t bytes, off_t offset) {
    if (!control || fd < 0 || fd >= FDS || !table[fd].kind)
        return offset < 0 ? syscall(SYS_write, fd, data, bytes) : syscall(SYS_pwrite64, fd, data, bytes, offset);
    enter();
    struct watched *file = entry(fd);
    ssize_t result;
    if (file) {
        off_t at = offset;
        if (offset < 0) {
            struct stat now;
            int append = (int)syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
            at = append && syscall(SYS_fstat, fd, &now) == 0 ? now.st_size : (off_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
        }
        switch (due(CLASS_WRITE, file->path)) {
        case ACTION_KILL:
            note(OP_WRITE, 1, file->inode, NULL, NULL, at, data, bytes);
            die();
            break;
        case ACTION_FAIL: result = failed(); goto out;
        case ACTION_SHORT: bytes = bytes > 1 ? bytes / 2 : bytes; break;
        case ACTION_NONE: case ACTION_STOP: break;
        }
        result = offset < 0 ? syscall(SYS_write, fd, data, bytes) : syscall(SYS_pwrite64, fd, data, bytes, offset);
        if (result > 0) note(OP_WRITE, 0, file->inode, NULL, NULL, at, data, (size_t)result);
    } else {
        result = offset < 0 ? syscall(SYS_write, fd, data, bytes) : syscall(SYS_pwrite64, fd, data, bytes, offset);
    }
out:;
    int error = errno;
    leave();
    errno = error;
    return result;
}

EXPORT ssize_t write(int fd, const void *data, size_t bytes) { return written(fd, data, bytes, -1); }
EXPORT ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) { return written(fd, data, bytes, offset); }
EXPORT ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) { return written(fd, data, bytes, offset); }
EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (control && fd >= 0 && fd < FDS && table[fd].kind) fatal("writev is not modelled", table[fd].path);
    return syscall(SYS_writev, fd, parts, count);
}

static ssize_t got(int fd, void *data, size_t bytes, off_t offset) {
    if (control && control->action == ACTION_FAIL && (control->classes & CLASS_READ) && fd >= 0 && fd < FDS && table[fd].kind) {
        enter();
        struct watched *file = entry(fd);
        enum action action = file ? due(CLASS_READ, file->path) : ACTION_NONE;
        leave();
        if (action == ACTION_FAIL) return failed();
    }
    return offset < 0 ? syscall(SYS_read, fd, data, bytes) : syscall(SYS_pread64, fd, data, bytes, offset);
}
EXPORT ssize_t read(int fd, void *data, size_t bytes) { return got(fd, data, bytes, -1); }
EXPORT ssize_t pread(int fd, void *data, size_t bytes, off_t offset) { return got(fd, data, bytes, offset); }
EXPORT ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset) { return got(fd, data, bytes, offset); }

static int truncated(int fd, off_t size) {
    enter();
    struct watched *file = entry(fd);
    int result = -1;
    if (file) switch (due(CLASS_WRITE, file->path)) {
        case ACTION_KILL:
            note(OP_TRUNCATE, 1, file->inode, NULL, NULL, size, NULL, 0);
            die();
            break;
        case ACTION_FAIL: case ACTION_SHORT: failed(); goto out;
        case ACTION_NONE: case ACTION_STOP: break;
    }
    result = (int)syscall(SYS_ftruncate, fd, size);
    if (file && result == 0) note(OP_TRUNCATE, 0, file->inode, NULL, NULL, size, NULL, 0);
out:;
    int error = errno;
    leave();
    errno = error;
    return result;
}
EXPORT int ftruncate(int fd, off_t size) { return truncated(fd, size); }
EXPORT int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }

static int synced(int fd, long number) {
    if (!control || fd < 0 || fd >= FDS || !table[fd].kind) return (int)syscall(number, fd);
    enter();
    struct watched *file = entry(fd);
    int result = 0;
    if (!file) {
        result = (int)syscall(number, fd);
    } else {
        switch (due(CLASS_SYNC, file->path)) {
        case ACTION_KILL: die(); break;
        case ACTION_FAIL: case ACTION_SHORT:
            note(OP_SYNC_FAILED, 0, file->inode, file->path, NULL, file->kind, NULL, 0);
            result = failed();
            break;
        case ACTION_NONE: case ACTION_STOP:
            note(file->kind == 2 ? OP_SYNC_DIRECTORY : OP_SYNC, 0, file->inode, file->path, NULL, 0, NULL, 0);
            break;
        }
    }
    int error = errno;
    leave();
    errno = error;
    return result;
}
EXPORT int fsync(int fd) { return synced(fd, SYS_fsync); }
EXPORT int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* An operation on names: `operation` on the watched path, carried out by `call`. */
#define NAMES(operation, watched_path, other_path, call) \
    enter(); \
    int result = -1; \
    switch (due(CLASS_NAME, watched_path)) { \
    case ACTION_KILL: note(operation, 1, 0, watched_path, other_path, 0, NULL, 0); die(); break; \
    case ACTION_FAIL: case ACTION_SHORT: failed(); break; \
    case ACTION_NONE: case ACTION_STOP: \
        result = (int)(call); \
        if (result == 0) note(operation, 0, 0, watched_path, other_path, 0, NULL, 0); \
        break; \
    } \
    int error = errno; \
    leave(); \
    errno = error; \
    return result;

static int renamed(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    char source[PATH_MAX], target[PATH_MAX];
    if (!control || !(is_watched(from_directory, from, source) | is_watched(to_directory, to, target)))
        return (int)syscall(SYS_renameat2, from_directory, from, to_directory, to, flags);
    if (flags || !is_watched(from_directory, from, source) || !is_watched(to_directory, to, target)) fatal("this rename is not modelled", to);
    NAMES(OP_RENAME, source, target, syscall(SYS_renameat2, from_directory, from, to_directory, to, 0))
}
EXPORT int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
EXPORT int renameat(int from_directory, const char *from, int to_directory, const char *to) { return renamed(from_directory, from, to_directory, to, 0); }
EXPORT int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    return renamed(from_directory, from, to_directory, to, flags);
}

static int linked(int from_directory, const char *from, int to_directory, const char *to, int flags) {
    char source[PATH_MAX], target[PATH_MAX];
    if (!control || !is_watched(to_directory, to, target)) return (int)syscall(SYS_linkat, from_directory, from, to_directory, to, flags);
    if (!is_watched(from_directory, from, source)) fatal("this link is not modelled", to);
    NAMES(OP_LINK, source, target, syscall(SYS_linkat, from_directory, from, to_directory, to, flags))
}
EXPORT int link(const char *from, const char *to) { return linked(AT_FDCWD, from, AT_FDCWD, to, 0); }
EXPORT int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags) {
    return linked(from_directory, from, to_directory, to, flags);
}

EXPORT int unlinkat(int directory, const char *path, int flags) {
    char absolute[PATH_MAX];
    if (!control || !is_watched(directory, path, absolute)) return (int)syscall(SYS_unlinkat, directory, path, flags);
    enum operation operation = flags & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK;
    NAMES(operation, absolute, NULL, syscall(SYS_unlinkat, directory, path, flags))
}
EXPORT int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int mkdirat(int directory, const char *path, mode_t mode) {
    char absolute[PATH_MAX];
    if (!control || !is_watched(directory, path, absolute)) return (int)syscall(SYS_mkdirat, directory, path, mode);
    NAMES(OP_MKDIR, absolute, NULL, syscall(SYS_mkdirat, directory, path, mode))
}
EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    if (control && fd >= 0 && fd < FDS && table[fd].kind == 1 && (flags & MAP_SHARED) && (protection & PROT_WRITE))
        fatal("a shared writable mapping is not modelled", table[fd].path);
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset) {
    return mmap(address, length, protection, flags, fd, offset);
}
EXPORT int fallocate(int fd, int mode, off_t offset, off_t length) {
    if (control && fd >= 0 && fd < FDS && table[fd].kind) fatal("fallocate is not modelled", table[fd].path);
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}
EXPORT int posix_fallocate(int fd, off_t offset, off_t length) { return fallocate(fd, 0, offset, length) < 0 ? errno : 0; }
EXPORT int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

EXPORT int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = (int)syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t now = at->tv_sec * INT64_C(1000000000) + at->tv_nsec + control->clock_offset_ns;
        at->tv_sec = now / INT64_C(1000000000);
        at->tv_nsec = now % INT64_C(1000000000);
    }
    return result;
}
EXPORT int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
EXPORT time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
