# The system's calls that the drivers without io_uring make: declarations alone, which mean what their manual pages say.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int) noexcept
    int epoll_ctl(int, int, int, epoll_event *) noexcept
    int epoll_wait(int, epoll_event *, int, int) noexcept
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLERR
        EPOLLHUP
        EPOLLIN
        EPOLLOUT


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_read(int, uint64_t *) noexcept
    int eventfd_write(int, uint64_t) noexcept


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        uint16_t sa_family
    struct sockaddr_storage:
        uint16_t ss_family
    int accept4(int, sockaddr *, unsigned int *, int) noexcept
    ssize_t recv(int, void *, size_t, int) noexcept
    ssize_t socket_send "send"(int, const void *, size_t, int) noexcept
    int shutdown(int, int) noexcept
    enum:
        AF_INET
        AF_INET6
        MSG_DONTWAIT
        MSG_MORE
        MSG_NOSIGNAL
        SHUT_WR
        SOCK_CLOEXEC
        SOCK_NONBLOCK


cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_port
        in6_addr sin6_addr
    uint16_t ntohs(uint16_t) noexcept


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int poll(pollfd *, unsigned long, int) noexcept
    enum:
        POLLIN
        POLLOUT


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept
    ssize_t pread(int, void *, size_t, long) noexcept
    ssize_t write(int, const void *, size_t) noexcept
    long syscall(long, ...) noexcept
