/* Indicating: all bytes of a connection that are not answered here go up in order, by the ring; where that is full, or user
 * mode wants the client to slow down, they stay in the socket, and user mode takes them from there.
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#include "answer.bpf.h"
#include "images.bpf.h"

enum { TCP_FLAG_FIN = 1, CUT_SIZE_BYTES_MAX = 4095, CUTS_MAX = 64 };

/* A retransmission that overlaps what has been delivered comes whole. Taken whole, it would push TCP's count of read bytes
 * past what was received, and a request would run twice: the old bytes are cut off. Returns what could not be. */
__noinline uint32_t cut(struct __sk_buff *skb, uint32_t old) {
    for (int index = 0; index < CUTS_MAX && old; index++) {
        uint32_t piece = old > CUT_SIZE_BYTES_MAX ? CUT_SIZE_BYTES_MAX : old;
        if (bpf_skb_adjust_room(skb, -(int32_t)piece, 0, 0)) break;
        old -= piece;
    }
    return old;
}

/* Leaves a packet to the socket. User mode is told, and so woken, where the ring has room for that: a packet that is too
 * large for it can meet an empty ring. Where there is no room it is awake, or about to be, and looks at `spills`. */
static __always_inline int spill(bb_words *shared, bb_row *row, const bb_record *packet, uint32_t up) {
    bb_record head = *packet;
    if (row->spill == row->spill_seen) {
        row->spill_at = packet->up;
        __sync_fetch_and_add(&row->spill, 1);
        __sync_fetch_and_add(&shared->spills, 1);
        head.type = BB_SPILLED;
        head.length = 0;
        tell(shared, &head);
    }
    row->up = up;
    return SK_PASS;
}

static __always_inline int take(struct __sk_buff *skb, bb_words *shared, bb_row *row, uint32_t row_number) {
    struct sk_buff *kernel_skb = bpf_cast_to_kern_ctx(skb);
    struct tcp_skb_cb *control = bpf_rdonly_cast(kernel_skb->cb, bpf_core_type_id_kernel(struct tcp_skb_cb));
    uint32_t is_end = control->tcp_flags & TCP_FLAG_FIN, old = row->next_sequence - control->seq, up = row->up;
    uint32_t length = skb->len;
    bb_record head;
    if (old) {
        count(&shared->overlaps);
        if (old > length) return SK_DROP;
        old = cut(skb, old);
        length = skb->len;
    }
    length -= old;
    row->next_sequence += length;
    if (!length && !is_end) return SK_DROP;
    uint32_t after = up + length + !!is_end;
    head.row = row_number;
    head.type = is_end ? BB_END : BB_BYTES;
    head.up = up;
    head.length = length;
    head.cookie = row->cookie;
    uint64_t met = 0;
    int failed, stays = row->spill != row->spill_seen || (length && row->pause);
    if (!stays) {
        count(&shared->packets);
        if (length && !is_end && !old && shared->image_count) met = find(skb, shared);
    }
    if (can_answer) {
        if (met && !answer(skb->sk, shared, row, &head, met)) return SK_DROP; /* nothing was handed up */
        settle(skb->sk, row);
    }
    if (stays) return spill(shared, row, &head, after);
    if (!length)
        failed = tell(shared, &head);
    else if (met && !tell_hit(shared, &head, met))
        failed = 0;
    else if (length <= BB_TINY_SIZE_BYTES)
        failed = tell_few(skb, shared, &head, old, BB_TINY_SIZE_BYTES);
    else if (length <= BB_SMALL_SIZE_BYTES)
        failed = tell_few(skb, shared, &head, old, BB_SMALL_SIZE_BYTES);
    else
        failed = tell_many(skb, shared, &head, old);
    if (failed) return spill(shared, row, &head, after);
    row->up = after;
    return SK_DROP;
}
