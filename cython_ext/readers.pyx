"""Readers: threads that wait for disks, so that an engine does not: all readings without io_uring, and openings.

The rules:

- A job belongs to a reader from readers_ask until readers_collect, one thread at a time touches it.
- They sleep while there is nothing to do. They are started one by one, while all that there are have something to do.
- They never touch Python.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free


cdef extern from "<errno.h>" nogil:
    int ECANCELED


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int, void *, size_t, long) noexcept
    ssize_t write(int, const void *, size_t) noexcept


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t *, void *) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *) noexcept
    int pthread_mutex_lock(pthread_mutex_t *) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *) noexcept
    int pthread_cond_init(pthread_cond_t *, void *) noexcept
    int pthread_cond_destroy(pthread_cond_t *) noexcept
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *) noexcept
    int pthread_cond_signal(pthread_cond_t *) noexcept
    int pthread_cond_broadcast(pthread_cond_t *) noexcept
    int pthread_create(pthread_t *, void *, void *(*)(void *) noexcept nogil, void *) noexcept
    int pthread_join(pthread_t, void **) noexcept


cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *) noexcept
    int pthread_sigmask(int, const sigset_t *, sigset_t *) noexcept
    int SIG_SETMASK


cdef enum:
    THREADS_MAX = 8                 # that wait for disks at a time


cdef struct Readers:
    pthread_mutex_t mutex
    pthread_cond_t asked
    pthread_t threads[THREADS_MAX]
    uint32_t thread_count
    uint32_t idle
    int bell
    bint is_ending
    Job *first                      # to be read, the oldest first
    Job *last
    Job *done


cdef int64_t carry_out(Job *job) noexcept nogil:
    cdef ssize_t count
    if job.work is not NULL:
        return job.work(job)
    while True:
        count = pread(job.file, job.at, job.length, <long>job.offset)
        if count >= 0:
            return count
        if errno != EINTR:
            return -errno


cdef Job *take_first(Readers *readers) noexcept nogil:
    cdef Job *job = readers.first
    readers.first = job.next
    if readers.first is NULL:
        readers.last = NULL
    return job


cdef void finish(Readers *readers, Job *job, int64_t result) noexcept nogil:
    """Lays a job down for whoever asked, with the mutex held."""
    cdef uint64_t one = 1
    job.result = result
    job.next = readers.done
    readers.done = job
    write(readers.bell, &one, 8)


cdef void *read_on(void *given) noexcept nogil:
    """A thread's life."""
    cdef Readers *readers = <Readers *>given
    cdef Job *job
    cdef int64_t result
    pthread_mutex_lock(&readers.mutex)
    while True:
        while readers.first is NULL and not readers.is_ending:
            readers.idle += 1
            pthread_cond_wait(&readers.asked, &readers.mutex)
            readers.idle -= 1
        if readers.is_ending:
            break
        job = take_first(readers)
        pthread_mutex_unlock(&readers.mutex)
        result = carry_out(job)
        pthread_mutex_lock(&readers.mutex)
        finish(readers, job, result)
    pthread_mutex_unlock(&readers.mutex)
    return NULL


cdef Readers *readers_new(int bell) noexcept nogil:
    cdef Readers *readers = <Readers *>calloc(1, sizeof(Readers))
    if readers is not NULL:
        readers.bell = bell
        pthread_mutex_init(&readers.mutex, NULL)
        pthread_cond_init(&readers.asked, NULL)
    return readers


cdef void start_thread(Readers *readers) noexcept nogil:
    # Signals are for the threads that were there before.
    cdef sigset_t everything, before
    sigfillset(&everything)
    pthread_sigmask(SIG_SETMASK, &everything, &before)
    if pthread_create(&readers.threads[readers.thread_count], NULL, read_on, readers) == 0:
        readers.thread_count += 1
    pthread_sigmask(SIG_SETMASK, &before, NULL)


cdef void readers_ask(Readers *readers, Job *job) noexcept nogil:
    job.next = NULL
    pthread_mutex_lock(&readers.mutex)
    if readers.is_ending:
        finish(readers, job, -ECANCELED)
        pthread_mutex_unlock(&readers.mutex)
        return
    if readers.last is not NULL:
        readers.last.next = job
    else:
        readers.first = job
    readers.last = job
    if readers.idle:
        pthread_cond_signal(&readers.asked)
    elif readers.thread_count < THREADS_MAX:
        start_thread(readers)
    if readers.thread_count == 0:
        job = take_first(readers)
        finish(readers, job, carry_out(job))
    pthread_mutex_unlock(&readers.mutex)


cdef Job *readers_collect(Readers *readers) noexcept nogil:
    cdef Job *jobs
    pthread_mutex_lock(&readers.mutex)
    jobs = readers.done
    readers.done = NULL
    pthread_mutex_unlock(&readers.mutex)
    return jobs


cdef void readers_end(Readers *readers) noexcept nogil:
    cdef uint32_t index
    cdef Job *job
    pthread_mutex_lock(&readers.mutex)
    readers.is_ending = True
    pthread_cond_broadcast(&readers.asked)
    pthread_mutex_unlock(&readers.mutex)
    for index in range(readers.thread_count):
        pthread_join(readers.threads[index], NULL)
    readers.thread_count = 0
    while readers.first is not NULL:
        job = take_first(readers)
        finish(readers, job, -ECANCELED)


cdef void readers_free(Readers *readers) noexcept nogil:
    if readers is NULL:
        return
    pthread_cond_destroy(&readers.asked)
    pthread_mutex_destroy(&readers.mutex)
    free(readers)
