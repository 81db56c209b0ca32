/* Requests that user mode has published: found by hash, then compared to the last byte (law 2).
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#pragma once
#include "ring.bpf.h"

enum { LEVELS = 4, LANES = BB_IMAGE_SIZE_BYTES_MAX / 32 };

struct packet {
    uint64_t words[BB_IMAGE_WORDS_MAX];
};
/* A packet's bytes where loops can reach them: one for each processor and level of nesting. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, LEVELS);
    __type(key, uint32_t);
    __type(value, struct packet);
} packets SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, uint32_t);
    __type(value, uint32_t);
} nesting SEC(".maps");

/* These, and find_image, are not static, so that the verifier looks at each by itself and not once for every way to it. */
__noinline uint64_t hash_of(const struct packet *packet, uint32_t length, uint32_t lanes) {
    uint64_t a = length, b = 1, c = 2, d = 3;
    if (!packet) return 0;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        if (lane >= lanes) break;
        a = bb_fold(a, packet->words[4 * lane]);
        b = bb_fold(b, packet->words[4 * lane + 1]);
        c = bb_fold(c, packet->words[4 * lane + 2]);
        d = bb_fold(d, packet->words[4 * lane + 3]);
    }
    return bb_fold_lanes(a, b, c, d);
}

__noinline int is_same(const struct packet *packet, const bb_image_space *space, uint32_t at, uint32_t lanes) {
    uint64_t differing = 0;
    if (!packet || !space || at > BB_IMAGE_SPACE_WORDS - BB_IMAGE_WORDS_MAX) return 0;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        if (lane >= lanes) break;
        for (int word = 0; word < 4; word++)
            differing |= packet->words[4 * lane + word] ^ space->words[at + 4 * lane + word];
    }
    return differing == 0;
}

/* An image as it was met: its number, and above that the generation that it had before it was compared. 0: none. Whoever
 * uses it looks later whether it still has that generation; then it was not written meanwhile. */
static __always_inline uint32_t number_of(uint64_t met) { return (uint32_t)met; }
static __always_inline uint32_t generation_of(uint64_t met) { return met >> 32; }

/* The image that the packet's bytes are, from the first on to the last. */
__noinline uint64_t find_image(struct __sk_buff *skb, uint32_t level) {
    struct packet *packet = bpf_map_lookup_elem(&packets, &level);
    uint32_t zero = 0, length = skb->len, lanes = (length + 31) / 32, last = (lanes - 1) & (LANES - 1);
    bb_image_space *space = bpf_map_lookup_elem(&image_space, &zero);
    if (!packet || !space || length < BB_IMAGE_SIZE_BYTES_MIN || length > BB_IMAGE_SIZE_BYTES_MAX - 32) return 0;
    for (int word = 0; word < 4; word++) packet->words[last * 4 + word] = 0;
    if (bpf_skb_load_bytes(skb, 0, packet, length)) return 0;
    uint64_t hash = hash_of(packet, length, lanes);
    for (uint32_t probe = 0; probe < BB_IMAGE_PROBES; probe++) {
        uint32_t slot = (uint32_t)(hash + probe) & (BB_IMAGE_SLOTS - 1);
        uint32_t *entry = bpf_map_lookup_elem(&image_slots, &slot);
        uint32_t number = entry ? *(volatile uint32_t *)entry : 0;
        if (number == 0) return 0;
        number -= 1;
        bb_image *image = bpf_map_lookup_elem(&images, &number);
        if (!image || image->hash != hash || image->length != length) continue;
        /* An atomic load: what is compared behind it is at least as new. */
        uint64_t generation = __sync_fetch_and_add(&image->generation, 0);
        if (generation && is_same(packet, space, image->at, lanes)) return generation << 32 | number;
    }
    return 0;
}

static __always_inline uint64_t find(struct __sk_buff *skb, bb_words *shared) {
    uint32_t zero = 0, *depth = bpf_map_lookup_elem(&nesting, &zero), level;
    uint64_t found;
    if (!depth) return 0;
    level = __sync_fetch_and_add(depth, 1);
    if (level) count(&shared->nested);
    found = level < LEVELS ? find_image(skb, level) : 0;
    __sync_fetch_and_add(depth, -1);
    return found;
}

/* Tells that a whole request has come whose bytes are the image's; 0, or -1: it is to be handed up as bytes. */
static __always_inline int tell_hit(bb_words *shared, const bb_record *head, uint64_t met) {
    uint32_t number = number_of(met), generation = generation_of(met);
    bb_image *image = bpf_map_lookup_elem(&images, &number);
    struct hit_record *record;
    if (!image) return -1;
    record = bpf_ringbuf_reserve(&records, sizeof *record, 0);
    if (!record) return -1;
    record->head = *head;
    record->head.type = BB_HIT;
    record->hit.image = number;
    record->hit.generation = generation;
    /* A withdrawal waits for the records that were reserved before it, so one is reserved, then the generation looked at
     * again: the atomic addition keeps the two in order. */
    __sync_fetch_and_add(&shared->hits, 1);
    if (*(volatile uint32_t *)&image->generation != generation) {
        __sync_fetch_and_add(&shared->hits, -1);
        count(&shared->stale);
        bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
        return -1;
    }
    bpf_ringbuf_submit(record, wake(shared, &record->head));
    return 0;
}
