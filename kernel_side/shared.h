/* What the kernel side and user mode agree on: layouts and limits. Includes nothing but integer types, so that it can be
 * compiled for either.
 *
 * SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 */
#ifndef BB_SHARED_H
#define BB_SHARED_H

#include <stdint.h>

/* Part of a request head: bytes [offset, offset + length), counted from the head's first byte, so that a head can lie at
 * another address on the other side. */
typedef struct {
    uint32_t offset, length;
} bb_slice;

#endif
