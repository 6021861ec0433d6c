/* SPDX-License-Identifier: MIT */
/* Scope cleanup: a variable so marked is released when it goes out of scope.
 * Ownership passes on with rhea_steal. */
#ifndef RHEA_BASE_CLEANUP_H
#define RHEA_BASE_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}

static inline void cleanup_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void cleanup_unlock(pthread_mutex_t **m)
{
    pthread_mutex_unlock(*m);
}

#define RHEA_AUTO_FREE __attribute__((cleanup(cleanup_free)))
#define RHEA_AUTO_CLOSE __attribute__((cleanup(cleanup_close)))

/* Hold MUTEX to the end of the enclosing scope. One per scope. */
#define RHEA_LOCKED(mutex)                                                     \
    __attribute__((cleanup(cleanup_unlock), unused))                           \
    pthread_mutex_t *rhea_locked_ = (pthread_mutex_lock(mutex), (mutex))

#define rhea_steal(p)                                                          \
    ({                                                                         \
        __typeof__(p) stolen_ = (p);                                           \
        (p) = NULL;                                                            \
        stolen_;                                                               \
    })

#endif
