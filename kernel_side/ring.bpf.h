/* The ring to user mode: when it wakes, and records of every size.
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#pragma once
#include "maps.bpf.h"

struct hit_record {
    bb_record head;
    bb_hit hit;
};

/* The place in polled_rows of the row that a record is of, if it is one of a packet: -1, there is none. */
static __always_inline int polled_place(bb_words *shared, const bb_record *head) {
    if (head->type != BB_BYTES && head->type != BB_END && head->type != BB_HIT) return -1;
    for (int place = 0; place < BB_POLLED_ROWS_MAX; place++)
        if (*(volatile uint32_t *)&shared->polled_rows[place] == head->row + 1) return place;
    return -1;
}

enum { WAKE_ATTEMPTS = 4 };

/* Where user mode polls a packet's socket it is woken by that, when this program has returned. But of two packets that
 * come to one socket before user mode runs, io_uring tells nothing at all: the second wakes for sure. */
static __always_inline uint64_t wake_sleeper(bb_words *shared, const bb_record *head) {
    for (int attempt = 0; attempt < WAKE_ATTEMPTS; attempt++) {
        uint32_t sleeps = *(volatile uint32_t *)&shared->sleeps, next = BB_AWAKE;
        int place;
        if (sleeps == BB_AWAKE) return BPF_RB_NO_WAKEUP;
        place = polled_place(shared, head);
        if (sleeps >= BB_RUNG && place != (int)(sleeps - BB_RUNG)) return BPF_RB_NO_WAKEUP;
        if (sleeps < BB_RUNG && place >= 0) next = BB_RUNG + place;
        if (__sync_val_compare_and_swap(&shared->sleeps, sleeps, next) != sleeps) continue;
        if (next == BB_AWAKE) break;
        /* The swap was a barrier: what user mode had changed before it slept is seen now. */
        if (polled_place(shared, head) == place) return BPF_RB_NO_WAKEUP;
        *(volatile uint32_t *)&shared->sleeps = BB_AWAKE;
        break;
    }
    count(&shared->wakes);
    return BPF_RB_FORCE_WAKEUP;
}

/* Flags for submitting a record that has been reserved. User mode writes "I sleep" before it looks at the ring for the
 * last time, so one of the two sides sees the other. The atomic addition orders the reservation before the look: one that
 * yields a value is a full barrier, also where the processor would not make it one by itself. */
static __always_inline uint64_t wake(bb_words *shared, const bb_record *head) {
    __sync_fetch_and_add(&shared->records, 1);
    return wake_sleeper(shared, head);
}

/* The same for a record that can wait, where user mode will look by itself before long. */
static __always_inline uint64_t wake_for_many(bb_words *shared, const bb_record *head) {
    __sync_fetch_and_add(&shared->records, 1);
    __sync_fetch_and_add(&shared->patient_records, 1);
    if (*(volatile uint32_t *)&shared->sleeps == BB_LOOKS_SOON &&
        bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA) < BB_PATIENT_SIZE_BYTES_MAX)
        return BPF_RB_NO_WAKEUP;
    return wake_sleeper(shared, head);
}

/* A record without bytes; -1: the ring is full. */
static __always_inline int tell(bb_words *shared, const bb_record *head) {
    bb_record *record = bpf_ringbuf_reserve(&records, sizeof *record, 0);
    if (!record) return -1;
    *record = *head;
    bpf_ringbuf_submit(record, wake(shared, head));
    return 0;
}

/* `length` bytes in a record with room for `room`, a constant: to reserve it takes a third of what any other size does. */
static __always_inline int tell_few(struct __sk_buff *skb, bb_words *shared, const bb_record *head, uint32_t offset,
                                    const uint32_t room) {
    bb_record *record = bpf_ringbuf_reserve(&records, sizeof *record + room, 0);
    uint32_t length = head->length;
    if (!record) return -1;
    *record = *head;
    asm volatile("" : "+r"(length)); /* else the compiler forgets what the verifier has to see */
    if (length == 0 || length > room || bpf_skb_load_bytes(skb, offset, record + 1, length)) {
        bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
        return -1;
    }
    bpf_ringbuf_submit(record, wake(shared, head));
    return 0;
}

/* Any length, by chunks, with helpers of Linux 5.19 alone; one record whatever the length. */
static __always_inline int tell_many(struct __sk_buff *skb, bb_words *shared, const bb_record *head, uint32_t offset) {
    struct bpf_dynptr space;
    uint32_t length = head->length, chunks = (length + BB_CHUNK_SIZE_BYTES - 1) / BB_CHUNK_SIZE_BYTES;
    if (chunks > BB_CHUNKS_MAX) return -1;
    if (bpf_ringbuf_reserve_dynptr(&records, sizeof *head + chunks * BB_CHUNK_SIZE_BYTES, 0, &space)) {
        bpf_ringbuf_discard_dynptr(&space, BPF_RB_NO_WAKEUP);
        return -1;
    }
    bpf_dynptr_write(&space, 0, (void *)head, sizeof *head, 0);
    uint32_t tail = length & (BB_CHUNK_SIZE_BYTES - 1), whole = length - tail;
    char *to;
    int failed = 0;
    for (uint32_t index = 0; index < BB_CHUNKS_MAX; index++) {
        if (index * BB_CHUNK_SIZE_BYTES >= whole) break;
        to = bpf_dynptr_data(&space, sizeof *head + index * BB_CHUNK_SIZE_BYTES, BB_CHUNK_SIZE_BYTES);
        if (!to || bpf_skb_load_bytes(skb, offset + index * BB_CHUNK_SIZE_BYTES, to, BB_CHUNK_SIZE_BYTES)) {
            failed = 1;
            break;
        }
    }
    if (!failed && tail) {
        to = bpf_dynptr_data(&space, sizeof *head + whole, BB_CHUNK_SIZE_BYTES);
        asm volatile("" : "+r"(tail));
        if (!to || tail == 0 || tail > BB_CHUNK_SIZE_BYTES || bpf_skb_load_bytes(skb, offset + whole, to, tail))
            failed = 1;
    }
    if (failed) {
        bpf_ringbuf_discard_dynptr(&space, BPF_RB_NO_WAKEUP);
        return -1;
    }
    bpf_ringbuf_submit_dynptr(&space, wake(shared, head));
    return 0;
}
