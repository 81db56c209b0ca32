/* What the kernel side and user mode agree on: layouts and limits. Includes nothing but integer types, so that it can be
 * compiled for either.
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#ifndef BB_SHARED_H
#define BB_SHARED_H

#ifdef __bpf__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

/* Part of a request head: bytes [offset, offset + length), counted from the head's first byte, so that a head can lie at
 * another address on the other side. */
typedef struct {
    uint32_t offset, length;
} bb_slice;

enum {
    BB_ROWS_MAX = 65536,
    /* Places for images, of three sizes, each a multiple of 32: programs mostly send less than 250 bytes, browsers 350 to
     * 700, and more where names or paths are long. The largest come last. */
    BB_SMALL_IMAGES = 8192,
    BB_SMALL_IMAGE_SIZE_BYTES = 320,
    BB_MEDIUM_IMAGES = 7168,
    BB_MEDIUM_IMAGE_SIZE_BYTES = 768,
    BB_LARGE_IMAGES = 1024,
    BB_IMAGE_SIZE_BYTES_MAX = 2048,
    BB_IMAGES_MAX = BB_SMALL_IMAGES + BB_MEDIUM_IMAGES + BB_LARGE_IMAGES,
    BB_IMAGE_BITS = 14, /* of an image's number */
    BB_IMAGE_WORDS_MAX = BB_IMAGE_SIZE_BYTES_MAX / 8,
    BB_IMAGE_SPACE_WORDS = BB_SMALL_IMAGES * (BB_SMALL_IMAGE_SIZE_BYTES / 8) +
        BB_MEDIUM_IMAGES * (BB_MEDIUM_IMAGE_SIZE_BYTES / 8) + BB_LARGE_IMAGES * BB_IMAGE_WORDS_MAX,
    BB_IMAGE_SIZE_BYTES_MIN = 16,
    BB_IMAGE_SLOTS = 32768,   /* of the index: a power of two, at least twice BB_IMAGES_MAX */
    BB_IMAGE_PROBES = 8,      /* slots that are looked at for one image */
    BB_TINY_SIZE_BYTES = 128, /* records with room for these two have a fixed size */
    BB_SMALL_SIZE_BYTES = 512,
    BB_CHUNK_SIZE_BYTES = 4096, /* what a larger record is copied by */
    BB_CHUNKS_MAX = 64,         /* packets of 120 KB were seen; longer ones go through the socket */
    BB_SENDS_MAX = 4096,        /* entries of the ring that the kernel side writes, a power of two */
    BB_SEND_COMPLETIONS_MAX = 65536,
    BB_SEND_ROOM_BYTES = 4096,         /* that a socket's send buffer must have beside the answer */
    BB_ANSWERED_UNIT_SHIFT = 20,       /* bb_row.answered: nanoseconds are shifted by this */
    BB_PATIENT_SIZE_BYTES_MAX = 32768, /* of the ring, that may fill with what can wait */
    BB_POLLED_ROWS_MAX = 4,
    BB_SEND_COOKIE_BITS = 33, /* see bb_send_name */
};
_Static_assert(BB_IMAGES_MAX <= 1 << BB_IMAGE_BITS && BB_IMAGE_SLOTS >= 2 * BB_IMAGES_MAX, "more images than room");
_Static_assert(16 + BB_IMAGE_BITS + 1 + BB_SEND_COOKIE_BITS == 64, "an entry's name has 64 bits");

/* One connection, as both sides see it. Each field has one writer. */
typedef struct {
    /* Written by the kernel side, under the lock of the socket. */
    uint64_t cookie;
    uint32_t next_sequence; /* TCP's number of the next byte of the request stream */
    uint32_t up;            /* bytes handed up, by the ring or through the socket; a FIN counts one */
    uint32_t spill_at;      /* the value of up where the socket's bytes begin: stored before spill */
    uint32_t spill;         /* differs from spill_seen: bytes go through the socket, as the ring was full */
    uint32_t closed;        /* TCP has let go of the socket */
    uint32_t out_kernel;    /* TCP's number when the connection was established, and bytes of answers posted here */
    uint32_t settled;       /* a value of out_kernel: all that was posted up to it has reached TCP */
    uint32_t answered;      /* when it was last answered here: CLOCK_MONOTONIC >> BB_ANSWERED_UNIT_SHIFT */
    /* Written by user mode. */
    uint32_t spill_seen; /* the value of spill up to which the socket was drained */
    uint32_t pause;      /* back-pressure: bytes stay in the socket */
    int32_t fd;          /* the descriptor; -1: not known yet */
    uint32_t done;       /* the value of up, up to which all was received, answered and posted */
    uint32_t
        out_user;     /* bytes of answers that user mode will have sent: stored before they are sent, and before done */
    uint32_t closing; /* nothing is to be posted any more */
} bb_row;             /* a line of the processor's cache for each */

/* What the kernel side tells, in the order in which it happened; a ring of them for each engine. */
enum {
    BB_OPENED = 1, /* followed by bb_peer */
    BB_BYTES,      /* followed by `length` bytes */
    BB_END,        /* FIN, behind `length` bytes */
    BB_CLOSED,     /* the connection is gone: reset, timed out, or ended by both sides; or the row was taken in vain */
    BB_SPILLED,    /* what comes next lies in the socket. Not told where the ring has no room: see `spills` */
    BB_HIT,        /* a whole request, whose bytes are an image's; followed by bb_hit */
    BB_HIT_ANSWERED, /* the same, and it was answered here; only told where words.tells_answers */
    BB_DOORBELL,     /* nothing: user mode is to wake the thread that sends what was posted here */
};
typedef struct {
    uint32_t row;
    uint32_t type;
    uint32_t up; /* of the row before this: where user mode has received less, the rest lies in the socket */
    uint32_t length;
    uint64_t cookie;
} bb_record;
typedef struct {
    uint8_t address[16];
    uint32_t family, port;
} bb_peer;
typedef struct {
    uint32_t image, generation;
} bb_hit;

/* A request that user mode has parsed, judged and published. Written by user mode. */
typedef struct {
    uint32_t generation; /* 0: withdrawn. Never used twice for one place. */
    uint32_t length;
    uint32_t at; /* of its first word, in bb_image_space: always the same for one place */
    uint32_t padding;
    uint64_t hash;
} bb_image;
/* The bytes of all images, those of a place one behind the other. */
typedef struct {
    uint64_t words[BB_IMAGE_SPACE_WORDS];
} bb_image_space;

/* What answers an image without user mode: a whole response, in user mode's memory. */
typedef struct {
    /* Written by user mode. */
    uint64_t address;
    uint64_t expires_ns; /* CLOCK_MONOTONIC */
    uint32_t length;
    uint32_t generation;       /* 0: there is none now. Never used twice for one place. */
    uint32_t image_generation; /* of the image that it answers */
    uint32_t buffer;           /* which of the image's two buffers it is: a failed send tells */
    uint32_t padding1[8];
    /* Written by the kernel side, under its lock. */
    uint64_t hits;
    uint64_t padding2[7];
} bb_rendering;

/* The ring that the kernel side writes, as io_uring lays it out: an entry, and the first words of its head. */
typedef struct {
    uint8_t opcode, flags;
    uint16_t priority;
    int32_t fd;
    uint64_t offset, address;
    uint32_t length, message_flags;
    uint64_t user_data;
    uint16_t buffer, personality;
    int32_t file_index;
    uint64_t address3, padding;
} bb_send_entry;
typedef struct {
    bb_send_entry entries[BB_SENDS_MAX];
} bb_send_entries;
typedef struct {
    uint32_t words[16]; /* where among them: bb_words.sends_*_at */
    char completions[BB_SEND_COMPLETIONS_MAX * 16];
} bb_send_ring;

/* What an entry is called: 16 bits of its row, 14 of its image, 1 of the image's buffer, 33 of the connection's cookie. */
static inline uint64_t bb_send_name(uint32_t row, uint32_t image, uint32_t buffer, uint64_t cookie) {
    return (uint64_t)row << 48 | (uint64_t)image << (BB_SEND_COOKIE_BITS + 1) |
           (uint64_t)buffer << BB_SEND_COOKIE_BITS | (cookie & ((1ull << BB_SEND_COOKIE_BITS) - 1));
}
static inline uint32_t bb_send_row(uint64_t name) { return (uint32_t)(name >> 48); }
static inline uint32_t bb_send_image(uint64_t name) {
    return (uint32_t)(name >> (BB_SEND_COOKIE_BITS + 1)) & ((1u << BB_IMAGE_BITS) - 1);
}
static inline uint32_t bb_send_buffer(uint64_t name) { return (uint32_t)(name >> BB_SEND_COOKIE_BITS) & 1; }
static inline int bb_send_is_of(uint64_t name, uint64_t cookie) {
    return ((name ^ cookie) & ((1ull << BB_SEND_COOKIE_BITS) - 1)) == 0;
}

/* Rows that are free: taken by the kernel side at `head`, given back by user mode at `tail`. */
typedef struct {
    uint32_t head, padding1[15];
    uint32_t tail, padding2[15];
    uint32_t rows[BB_ROWS_MAX];
} bb_free_rows;

/* What words.sleeps says of user mode. */
enum {
    BB_AWAKE = 0,
    BB_SLEEPS,
    BB_LOOKS_SOON, /* it will look by itself before long: what can wait wakes it only when there is much of it */
    BB_RUNG,       /* it slept, and will be woken by a packet of polled_rows[words.sleeps - BB_RUNG] */
};

/* Words that both sides look at, and counters. */
typedef struct {
    uint32_t sleeps;      /* user mode waits: wake it. Written by both. */
    uint32_t image_count; /* published; 0: none is looked for */
    uint32_t answering;   /* what is recognised may be answered by the kernel side */
    uint32_t tells_answers;
    uint32_t sends_head_at, sends_tail_at, sends_flags_at; /* of bb_send_ring.words */
    uint32_t polled_rows[BB_POLLED_ROWS_MAX]; /* + 1: user mode polls their sockets, whose packets wake it */
    uint32_t leaves_connections;              /* new ones are not to be taken over */
    uint32_t padding1[4];
    /* Written by the kernel side. */
    uint32_t spills;      /* connections that began to go through their socket */
    uint32_t lost_closes; /* BB_CLOSED that found the ring full: rows are to be looked through */
    uint32_t opened;
    uint32_t untracked; /* connections for which there was no row or no room in the ring */
    uint64_t records;
    uint64_t patient_records; /* of them, those for which user mode is not woken where it will look before long */
    uint64_t packets;
    uint64_t hits;
    uint64_t stale;    /* an image was met that was withdrawn meanwhile */
    uint64_t overlaps; /* retransmissions that had to be cut */
    uint64_t nested;
    /* Of the hits, those that were answered by the kernel side; and why others were not. */
    uint64_t answered;
    uint64_t answered_request_bytes;
    uint64_t answered_bytes;
    uint64_t owed;     /* user mode has not answered all that came before */
    uint64_t unsent;   /* what was posted before has not reached TCP */
    uint64_t outdated; /* there was no answer, or its time was over */
    uint64_t crowded;  /* no room in the send buffer, or in a ring */
    uint64_t doorbells;
    uint64_t wakes; /* of user mode, by an interrupt */
    uint64_t left;  /* connections that were not taken over, as user mode said */
} bb_words;

/* 64-bit hash of an image, four lanes wide: words by fours, missing ones 0. */
static inline uint64_t bb_fold(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15ull;
    return hash ^ (hash >> 29);
}
static inline uint64_t bb_fold_lanes(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    return bb_fold(bb_fold(a, b), bb_fold(c, d));
}

#endif
