/* Answering: for a request that is recognised, where nothing of its connection is owed, a SEND entry is written into a ring
 * that a kernel thread empties (SQPOLL). User mode has no part in it.
 *
 * - Order (law 1). It is answered only where user mode has answered and posted all that was handed up (`done`), and where
 *   all that either side has posted before has reached TCP. So at most one entry of a connection is in the ring. Before user
 *   mode sends anything it waits for that entry, unless `settled` says that it has left.
 * - Generations (law 3), and connections that user mode closes (law 4): both are looked at under the lock that entries are
 *   written under, and user mode takes that lock once behind a change (BPF_F_LOCK). What was written before is in the ring
 *   by then, and user mode waits until that is empty up to there.
 * - The entry's send neither waits nor falls short silently: DONTWAIT | WAITALL makes a completion if it does.
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#pragma once
#include "images.bpf.h"

enum {
    OPERATION_SEND = 26,
    ENTRY_SKIPS_SUCCESS = 1 << 6,
    SEND_FLAGS = 0x4000 | 0x100 | 0x40, /* MSG_NOSIGNAL | MSG_WAITALL | MSG_DONTWAIT */
    THREAD_SLEEPS = 1,                  /* IORING_SQ_NEED_WAKEUP */
    RING_WORD_MASK = 15,
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, BB_IMAGES_MAX);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, bb_answer);
} answers SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, bb_send_ring);
} send_ring SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, bb_send_entries);
} send_entries SEC(".maps");
struct posting {
    struct bpf_spin_lock lock;
    uint32_t unused;
};
/* A lock cannot be in memory that user mode maps. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, uint32_t);
    __type(value, struct posting);
} posting SEC(".maps");

/* Notes, before something is handed up, whether what was posted here has reached TCP. What user mode posts afterwards makes
 * the two sides differ for a while; then it knows by itself. */
static __always_inline void settle(struct bpf_sock *socket, bb_row *row) {
    struct tcp_sock *tcp;
    if (row->settled == row->out_kernel || !socket) return;
    tcp = bpf_skc_to_tcp_sock(socket);
    if (tcp && tcp->write_seq == row->out_kernel + *(volatile uint32_t *)&row->out_user) row->settled = row->out_kernel;
}

/* Wakes user mode, which can wake the thread that sends. Whoever is awake looks for that before it sleeps. */
static __always_inline void ring_doorbell(bb_words *shared, bb_row *row, uint32_t row_number) {
    bb_record head = {row_number, BB_DOORBELL, row->up, 0, row->cookie};
    if (!*(volatile uint32_t *)&shared->sleeps) return;
    count(&shared->doorbells);
    tell(shared, &head);
}

/* Writes the entry, unless something has changed meanwhile; 0 or -1. */
static __always_inline int post(bb_words *shared, bb_row *row, const bb_record *head, uint32_t number,
                                bb_answer *answer, uint32_t generation) {
    uint32_t zero = 0, head_at = shared->sends_head_at & RING_WORD_MASK,
             tail_at = shared->sends_tail_at & RING_WORD_MASK;
    uint32_t flags_at = shared->sends_flags_at & RING_WORD_MASK, tail, posted = 0;
    bb_send_ring *ring = bpf_map_lookup_elem(&send_ring, &zero);
    bb_send_entries *space = bpf_map_lookup_elem(&send_entries, &zero);
    struct posting *shut = bpf_map_lookup_elem(&posting, &zero);
    bb_send_entry *entry;
    if (!ring || !space || !shut) return -1;
    uint64_t address = answer->address, name = bb_send_name(head->row, number, answer->buffer & 1, head->cookie);
    uint32_t length = answer->length, request_length = head->length;
    int32_t fd = row->fd;
    bpf_spin_lock(&shut->lock);
    tail = ring->words[tail_at];
    if (tail - *(volatile uint32_t *)&ring->words[head_at] < BB_SENDS_MAX &&
        __sync_fetch_and_add(&answer->generation, 0) == generation && !*(volatile uint32_t *)&row->closing &&
        *(volatile uint32_t *)&shared->answering) {
        entry = &space->entries[tail & (BB_SENDS_MAX - 1)];
        entry->opcode = OPERATION_SEND;
        entry->flags = ENTRY_SKIPS_SUCCESS;
        entry->priority = 0;
        entry->fd = fd;
        entry->offset = 0;
        entry->address = address;
        entry->length = length;
        entry->message_flags = SEND_FLAGS;
        entry->user_data = name;
        entry->buffer = 0;
        entry->personality = 0;
        entry->file_index = 0;
        entry->address3 = 0;
        entry->padding = 0;
        row->out_kernel += length;
        answer->hits += 1;
        shared->answered += 1;
        shared->answered_request_bytes += request_length;
        shared->answered_bytes += length;
        posted = 1;
        /* Orders the entry before the tail, and the tail before the look at the flags. */
        tail = __sync_fetch_and_add(&ring->words[tail_at], 1);
    }
    bpf_spin_unlock(&shut->lock);
    if (!posted) return -1;
    if (*(volatile uint32_t *)&ring->words[flags_at] & THREAD_SLEEPS) ring_doorbell(shared, row, head->row);
    return 0;
}

/* Answers a whole request whose bytes are the image's; 0, or -1: user mode has to. */
static __always_inline int answer(struct bpf_sock *socket, bb_words *shared, bb_row *row, const bb_record *head,
                                  uint64_t met) {
    uint32_t number = number_of(met), generation;
    bb_answer *found = bpf_map_lookup_elem(&answers, &number);
    struct hit_record *record = 0;
    struct tcp_sock *tcp;
    uint64_t now_ns;
    if (!found || !socket || !*(volatile uint32_t *)&shared->answering || row->fd < 0) return -1;
    tcp = bpf_skc_to_tcp_sock(socket);
    if (!tcp) return -1;
    /* An atomic load: what is looked at behind it is at least as new. */
    if (__sync_fetch_and_add(&row->done, 0) != row->up) {
        count(&shared->owed);
        return -1;
    }
    if (tcp->write_seq != row->out_kernel + *(volatile uint32_t *)&row->out_user) {
        count(&shared->unsent);
        return -1;
    }
    /* The same: all of the answer is read behind its generation, and post() looks whether it still is that one. */
    generation = __sync_fetch_and_add(&found->generation, 0);
    now_ns = bpf_ktime_get_ns();
    if (!generation || now_ns >= found->expires_ns || found->image_generation != generation_of(met)) {
        count(&shared->outdated);
        return -1;
    }
    struct sock *sock = &tcp->inet_conn.icsk_inet.sk;
    if (sock->sk_sndbuf - sock->sk_wmem_queued < (int)(found->length + BB_SEND_ROOM_BYTES)) {
        count(&shared->crowded);
        return -1;
    }
    if (shared->tells_answers) {
        record = bpf_ringbuf_reserve(&records, sizeof *record, 0);
        if (!record) {
            count(&shared->crowded);
            return -1;
        }
        record->head = *head;
        record->head.type = BB_ANSWERED;
        record->hit.image = number;
        record->hit.generation = generation;
    }
    if (post(shared, row, head, number, found, generation)) {
        count(&shared->crowded);
        if (record) bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
        return -1;
    }
    row->answered = (uint32_t)(now_ns >> BB_ANSWERED_UNIT_SHIFT);
    count(&shared->hits);
    if (record) bpf_ringbuf_submit(record, wake_for_many(shared, &record->head));
    return 0;
}
