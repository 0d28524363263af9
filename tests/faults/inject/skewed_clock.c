/* Preloaded (LD_PRELOAD) into the processes of a Ray node: its clock is SKEW_S seconds ahead of the machine's.

Only what tells the time of day is changed, and points in time that waits are given are changed back, since the kernel
knows nothing of it. Monotonic clocks stay: those of two machines do not agree anyway. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static long skew_s(void) {
    const char *text = getenv("SKEW_S");
    return text ? atol(text) : 0;
}

/* Monotonic clocks count from the start of the machine: they are far below a time of day. */
static struct timespec true_time(const struct timespec *t) {
    struct timespec found = *t;
    if (found.tv_sec > 1000000000) found.tv_sec -= skew_s();
    return found;
}

int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, t);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += skew_s();
    return failed;
}

int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec then = true_time(until);
    return real(cond, mutex, &then);
}

long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "syscall");
    long a[6];
    va_list given;
    va_start(given, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(given, long);
    va_end(given);
    struct timespec then;
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
        then = true_time((const struct timespec *)a[3]);
        a[3] = (long)&then;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
