/* What the kernel side keeps: one set for each engine, since each engine loads its own.
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"

/* Of the kernel's structures only the fields that are used: their places are filled in when this is loaded. */
#define RELOCATED __attribute__((preserve_access_index))
struct sock {
    int sk_sndbuf, sk_wmem_queued;
} RELOCATED;
struct inet_sock {
    struct sock sk;
} RELOCATED;
struct inet_connection_sock {
    struct inet_sock icsk_inet;
} RELOCATED;
struct tcp_sock {
    struct inet_connection_sock inet_conn;
    uint32_t copied_seq, write_seq;
} RELOCATED;
struct sk_buff {
    char cb[48];
} RELOCATED;
struct tcp_skb_cb {
    uint32_t seq;
    uint8_t tcp_flags;
} RELOCATED;

extern void *bpf_cast_to_kern_ctx(void *) __ksym;
extern void *bpf_rdonly_cast(const void *, uint32_t) __ksym;

/* Whether the kernel side answers by itself: set by user mode before the load, so that without it nothing of that is in
 * the program, and its maps need not be there. */
volatile const uint32_t can_answer = 0;

/* Sizes are set by user mode before the load. */
struct {
    __uint(type, BPF_MAP_TYPE_SOCKHASH);
    __uint(max_entries, 1);
    __type(key, uint64_t);
    __type(value, uint64_t);
} sockets SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1);
    __type(key, uint64_t);
    __type(value, uint32_t);
} row_numbers SEC(".maps"); /* by cookie */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, bb_row);
} rows SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, bb_free_rows);
} free_rows SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 4096);
} records SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, bb_words);
} words SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, BB_IMAGES_MAX);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, bb_image);
} images SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, bb_image_space);
} image_space SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, BB_IMAGE_SLOTS);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, uint32_t);
    __type(value, uint32_t); /* an image's number + 1; 0: none */
} image_slots SEC(".maps");

/* Which listeners are an engine's own: user mode tags them, their connections inherit it. So no address is compared, and
 * other sockets, on the same port too, are left alone. */
struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
    __type(key, int);
    __type(value, uint32_t);
} listeners SEC(".maps");

static __always_inline bb_words *words_of(void) {
    uint32_t zero = 0;
    return bpf_map_lookup_elem(&words, &zero);
}

/* Counters without a lock: several processors may count at once. */
static __always_inline void count(uint64_t *counter) { __sync_fetch_and_add(counter, 1); }
