/* The least that a server of one large file can do, in two ways: io_uring's SPLICE, from the file into a pipe and from
 * there into the socket, or sendfile(2). Answers whatever was asked, one request after the other. No parsing, no log.
 *
 *   file_sender splice|sendfile PORT FILE CPU
 *
 * CPU: where the kernel's threads that splice are to run; without that they would take the client's core.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 1024, REQUEST_SIZE_BYTES = 8192, BACKLOG = 4096, EVENTS_AT_ONCE = 256, ENTRIES = 4096 };
/* What a pipe may hold without a privilege. */
enum { PIPE_SIZE_BYTES = 1048576 };

struct connection {
    int fd, pipe[2];
    int64_t offset;  /* in the file, of what is next to go into the pipe, or (sendfile) into the socket */
    int64_t in_pipe; /* bytes */
    int operations;  /* under way */
    int is_sending;
    char request[REQUEST_SIZE_BYTES];
};

static struct connection connections[CONNECTIONS_MAX];
static int file, head_length;
static int64_t file_size;
static char head[256];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int listen_at(int port) {
    const int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG)) fail("listen");
    return listener;
}

static struct connection *adopt(int fd) {
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        if (connections[i].fd) continue;
        memset(&connections[i], 0, sizeof connections[i]);
        connections[i].fd = fd;
        return &connections[i];
    }
    fprintf(stderr, "more than %d connections\n", CONNECTIONS_MAX);
    exit(1);
}

/* --- splice ------------------------------------------------------------------------------------------------------ */

enum operation { ACCEPT, RECEIVE, HEAD, FILL, DRAIN, OPERATIONS };

static struct io_uring ring;

static struct io_uring_sqe *entry_for(struct connection *connection, enum operation operation) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
    if (!entry) {
        io_uring_submit(&ring);
        entry = io_uring_get_sqe(&ring);
    }
    entry->user_data = (uint64_t)(connection - connections) * OPERATIONS + operation;
    connection->operations++;
    return entry;
}

static void ask(struct connection *connection) {
    struct io_uring_sqe *entry = entry_for(connection, RECEIVE);
    uint64_t name = entry->user_data;
    io_uring_prep_recv(entry, connection->fd, connection->request, REQUEST_SIZE_BYTES, 0);
    entry->user_data = name;
}

static void splice_from(struct connection *connection, enum operation operation, int from, int64_t offset, int to,
                        int64_t length, unsigned flags) {
    struct io_uring_sqe *entry = entry_for(connection, operation);
    uint64_t name = entry->user_data;
    io_uring_prep_splice(entry, from, offset, to, -1, (unsigned)length, SPLICE_F_MOVE);
    entry->user_data = name;
    entry->flags |= (uint8_t)flags;
}

/* Nothing of the connection is under way: lets the next piece leave. */
static void step(struct connection *connection) {
    int64_t left = file_size - connection->offset;
    if (!connection->is_sending) {
        ask(connection);
    } else if (connection->in_pipe) {
        splice_from(connection, DRAIN, connection->pipe[0], -1, connection->fd, connection->in_pipe, 0);
    } else if (left) {
        if (left > PIPE_SIZE_BYTES) left = PIPE_SIZE_BYTES;
        splice_from(connection, FILL, file, connection->offset, connection->pipe[1], left, IOSQE_IO_LINK);
        splice_from(connection, DRAIN, connection->pipe[0], -1, connection->fd, left, 0);
    } else {
        connection->is_sending = 0;
        ask(connection);
    }
}

static void end(struct connection *connection) {
    close(connection->pipe[0]);
    close(connection->pipe[1]);
    close(connection->fd);
    connection->fd = 0;
}

static void begin(struct connection *connection) {
    struct io_uring_sqe *entry = entry_for(connection, HEAD);
    uint64_t name = entry->user_data;
    io_uring_prep_send(entry, connection->fd, head, (size_t)head_length, MSG_MORE | MSG_NOSIGNAL);
    entry->user_data = name;
    connection->is_sending = 1;
    connection->offset = 0;
}

static void done(struct connection *connection, enum operation operation, int result) {
    connection->operations--;
    if (operation == FILL && result > 0) {
        connection->offset += result;
        connection->in_pipe += result;
    } else if (operation == DRAIN && result > 0) {
        connection->in_pipe -= result;
    }
    /* A short FILL breaks the chain: its DRAIN is asked for once more, of what there is. */
    if (result <= 0 && !(operation == DRAIN && result == -ECANCELED)) connection->is_sending = -1;
    if (connection->operations) return;
    if (connection->is_sending < 0) {
        end(connection);
    } else if (operation == RECEIVE) {
        begin(connection);
    } else {
        step(connection);
    }
}

static void accepted(int fd) {
    struct connection *connection = adopt(fd);
    if (pipe2(connection->pipe, O_CLOEXEC)) fail("pipe");
    if (fcntl(connection->pipe[1], F_SETPIPE_SZ, PIPE_SIZE_BYTES) < 0) fail("F_SETPIPE_SZ");
    ask(connection);
}

static void splice_all(int listener, int cpu) {
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    cpu_set_t cpus;
    struct io_uring_cqe *completion;
    struct io_uring_sqe *entry;
    if (io_uring_queue_init_params(ENTRIES, &ring, &params)) fail("io_uring");
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    if (io_uring_register_iowq_aff(&ring, sizeof cpus, &cpus)) fail("the affinity of the ring's threads");
    entry = io_uring_get_sqe(&ring);
    io_uring_prep_multishot_accept(entry, listener, NULL, NULL, 0);
    entry->user_data = UINT64_MAX;
    for (;;) {
        unsigned at, count = 0;
        io_uring_submit_and_wait(&ring, 1);
        io_uring_for_each_cqe(&ring, at, completion) {
            uint64_t name = completion->user_data;
            if (name != UINT64_MAX)
                done(&connections[name / OPERATIONS], (enum operation)(name % OPERATIONS), completion->res);
            else if (completion->res >= 0)
                accepted(completion->res);
            count++;
        }
        io_uring_cq_advance(&ring, count);
    }
}

/* --- sendfile ---------------------------------------------------------------------------------------------------- */

static void watch(int poll, int fd, uint32_t events, struct connection *connection) {
    struct epoll_event event = {.events = events, .data.ptr = connection};
    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
}

static void send_on(struct connection *connection) {
    while (connection->offset < file_size) {
        if (sendfile(connection->fd, file, &connection->offset, (size_t)(file_size - connection->offset)) <= 0) {
            if (errno == EAGAIN) return; /* EPOLLOUT tells */
            close(connection->fd);
            connection->fd = 0;
            return;
        }
    }
    connection->is_sending = 0;
}

static void receive(struct connection *connection) {
    ssize_t count = recv(connection->fd, connection->request, REQUEST_SIZE_BYTES, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0 || send(connection->fd, head, (size_t)head_length, MSG_MORE | MSG_NOSIGNAL) != head_length) {
        close(connection->fd);
        connection->fd = 0;
        return;
    }
    connection->is_sending = 1;
    connection->offset = 0;
    send_on(connection);
}

static void sendfile_all(int listener) {
    struct epoll_event events[EVENTS_AT_ONCE];
    int poll = epoll_create1(0);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    watch(poll, listener, EPOLLIN, NULL);
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (!connection) {
                for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;)
                    watch(poll, fd, EPOLLIN | EPOLLOUT | EPOLLET, adopt(fd));
            } else if (connection->fd) {
                if (connection->is_sending) send_on(connection);
                /* A client asks again only when it has the answer. */
                if (connection->fd && !connection->is_sending) receive(connection);
            }
        }
    }
}

int main(int argc, char **argv) {
    struct stat facts;
    int listener;
    if (argc != 5) {
        fprintf(stderr, "usage: file_sender splice|sendfile PORT FILE CPU\n");
        return 2;
    }
    file = open(argv[3], O_RDONLY);
    if (file < 0 || fstat(file, &facts)) fail(argv[3]);
    file_size = facts.st_size;
    head_length = snprintf(head, sizeof head,
                           "HTTP/1.1 200 OK\r\nServer: sender\r\nContent-Type: application/octet-stream\r\n"
                           "Content-Length: %lld\r\n\r\n",
                           (long long)file_size);
    listener = listen_at(atoi(argv[2]));
    if (strcmp(argv[1], "splice") == 0)
        splice_all(listener, atoi(argv[4]));
    else
        sendfile_all(listener);
}
