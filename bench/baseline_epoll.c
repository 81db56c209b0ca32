/* The user-mode baseline (METHOD: arm U0, the role of the paper's Howl): one thread that waits, reads, and writes one
 * prepared response of 64 bytes to whatever was asked. No parsing, no log: the least that user mode can cost.
 *
 *   baseline_epoll PORT
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS_AT_ONCE = 256, REQUEST_SIZE_BYTES = 8192, BACKLOG = 4096 };

static char response[512];
static int response_length;

static int listen_at(int port) {
    const int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG)) {
        perror("listen");
        exit(1);
    }
    return listener;
}

static void watch(int poll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
}

static void answer(int fd) {
    char request[REQUEST_SIZE_BYTES];
    if (read(fd, request, sizeof request) <= 0 || write(fd, response, (size_t)response_length) != response_length)
        close(fd);
}

int main(int argc, char **argv) {
    char body[65] = {0};
    memset(body, 'x', 64);
    response_length = snprintf(response, sizeof response,
                               "HTTP/1.1 200 OK\r\nServer: baseline\r\nContent-Type: text/plain\r\n"
                               "Content-Length: 64\r\n\r\n%s",
                               body);
    int listener = listen_at(argc > 1 ? atoi(argv[1]) : 8080);
    int poll = epoll_create1(0);
    struct epoll_event events[EVENTS_AT_ONCE];
    watch(poll, listener);
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd != listener) {
                answer(events[i].data.fd);
                continue;
            }
            for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) watch(poll, fd);
        }
    }
}
