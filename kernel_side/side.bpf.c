/* The kernel side: hands the bytes of an engine's connections up, in order, in batches that form by themselves while user
 * mode is busy; recognises requests that user mode has published; and answers them, where it was loaded to do so.
 *
 * Runs under the lock of a connection's socket, in softirq or in process context with softirqs on: it may be interrupted
 * by itself, for another connection. Nothing here knows HTTP.
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#include "answer.bpf.h"
#include "connections.bpf.h"
#include "images.bpf.h"
#include "indicate.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("sockops")
int on_connection(struct bpf_sock_ops *event) {
    bb_words *shared = words_of();
    if (!shared) return 1;
    if (event->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
        if (event->sk && bpf_sk_storage_get(&listeners, event->sk, 0, 0)) opened(event, shared);
    } else if (event->op == BPF_SOCK_OPS_STATE_CB && event->args[1] == BPF_TCP_CLOSE) {
        closed(event, shared);
    }
    return 1;
}

SEC("sk_skb/stream_verdict")
int on_data(struct __sk_buff *skb) {
    uint64_t cookie = bpf_get_socket_cookie(skb);
    uint32_t *number = bpf_map_lookup_elem(&row_numbers, &cookie), row_number;
    bb_words *shared = words_of();
    bb_row *row;
    if (!number || !shared) return SK_PASS;
    row_number = *number;
    row = bpf_map_lookup_elem(&rows, &row_number);
    return row ? take(skb, shared, row, row_number) : SK_PASS;
}
