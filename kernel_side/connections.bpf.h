/* Connections opened and closed. Runs under the lock of the connection's socket.
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#include "answer.bpf.h"

enum { FAMILY_IPV4 = 2, POP_ATTEMPTS = 16 };

/* A free row's number; -1: there is none. Processors take them side by side. */
static __always_inline int64_t take_row(void) {
    uint32_t zero = 0;
    bb_free_rows *free = bpf_map_lookup_elem(&free_rows, &zero);
    if (!free) return -1;
    for (int attempt = 0; attempt < POP_ATTEMPTS; attempt++) {
        uint32_t head = *(volatile uint32_t *)&free->head, row;
        if (head == *(volatile uint32_t *)&free->tail) return -1;
        row = free->rows[head & (BB_ROWS_MAX - 1)];
        if (__sync_val_compare_and_swap(&free->head, head, head + 1) == head) return row;
    }
    return -1;
}

struct opened_record {
    bb_record head;
    bb_peer peer;
};

static __always_inline void write_peer(struct bpf_sock_ops *event, bb_peer *peer) {
    uint32_t *address = (uint32_t *)peer->address;
    peer->family = event->family;
    peer->port = __builtin_bswap32(event->remote_port);
    if (event->family == FAMILY_IPV4) {
        address[0] = event->remote_ip4;
        address[1] = address[2] = address[3] = 0;
    } else {
        address[0] = event->remote_ip6[0];
        address[1] = event->remote_ip6[1];
        address[2] = event->remote_ip6[2];
        address[3] = event->remote_ip6[3];
    }
}

/* Takes the connection over; where that is not possible, or not wanted, it stays an ordinary one, whose bytes user mode
 * receives. */
static __always_inline void opened(struct bpf_sock_ops *event, bb_words *shared) {
    uint64_t cookie = bpf_get_socket_cookie(event);
    struct tcp_sock *tcp;
    struct opened_record *record;
    struct bpf_sock *socket = event->sk;
    int64_t number;
    uint32_t row_number;
    bb_row *row;
    if (!socket) return;
    if (*(volatile uint32_t *)&shared->leaves_connections) {
        count(&shared->left);
        return;
    }
    tcp = bpf_skc_to_tcp_sock(socket);
    if (!tcp) return;
    record = bpf_ringbuf_reserve(&records, sizeof *record, 0);
    if (!record) {
        __sync_fetch_and_add(&shared->untracked, 1);
        return;
    }
    number = take_row();
    row_number = (uint32_t)number;
    row = number < 0 ? 0 : bpf_map_lookup_elem(&rows, &row_number);
    if (!row) goto untracked;
    row->cookie = cookie;
    row->next_sequence = tcp->copied_seq;
    row->up = 0;
    row->spill = 0;
    row->closed = 0;
    row->out_kernel = row->settled = tcp->write_seq;
    row->answered = 0;
    if (bpf_map_update_elem(&row_numbers, &cookie, &row_number, BPF_ANY)) goto in_vain;
    if (bpf_sock_hash_update(event, &sockets, &cookie, BPF_ANY)) {
        bpf_map_delete_elem(&row_numbers, &cookie);
        goto in_vain;
    }
    bpf_sock_ops_cb_flags_set(event, BPF_SOCK_OPS_STATE_CB_FLAG);
    record->head = (bb_record){row_number, BB_OPENED, 0, sizeof record->peer, cookie};
    write_peer(event, &record->peer);
    __sync_fetch_and_add(&shared->opened, 1);
    bpf_ringbuf_submit(record, wake(shared, &record->head));
    return;
in_vain: /* only user mode can give a row back */
    record->head = (bb_record){row_number, BB_CLOSED, 0, 0, cookie};
    __sync_fetch_and_add(&shared->untracked, 1);
    bpf_ringbuf_submit(record, wake(shared, &record->head));
    return;
untracked:
    __sync_fetch_and_add(&shared->untracked, 1);
    bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}

static __always_inline void closed(struct bpf_sock_ops *event, bb_words *shared) {
    uint64_t cookie = bpf_get_socket_cookie(event);
    uint32_t *number = bpf_map_lookup_elem(&row_numbers, &cookie), row_number;
    bb_row *row;
    if (!number) return;
    row_number = *number;
    row = bpf_map_lookup_elem(&rows, &row_number);
    if (!row) return;
    bpf_map_delete_elem(&row_numbers, &cookie);
    if (can_answer) settle(event->sk, row);
    bb_record head = {row_number, BB_CLOSED, row->up, 0, cookie};
    row->closed = 1; /* for when there is no room: then user mode looks at the rows */
    if (tell(shared, &head)) __sync_fetch_and_add(&shared->lost_closes, 1);
}
