/* What a byte may be part of, and what it is worth as a hexadecimal digit. Constants, which the compiler works out. */
#ifndef BB_OCTETS_H
#define BB_OCTETS_H

#include <stdint.h>

/* Bits of bb_octet_class. */
enum {
    BB_OCTET_TOKEN = 1,
    BB_OCTET_TARGET = 2,
    BB_OCTET_VALUE = 4,
    BB_OCTET_HOST = 8,
    BB_OCTET_ADDRESS = 16,
};

enum { BB_OCTET_NOT_HEX = 255 };

#define BB_IS_DIGIT(c) ((c) >= '0' && (c) <= '9')
#define BB_IS_SMALL_HEX(c) ((c) >= 'a' && (c) <= 'f')
#define BB_IS_CAPITAL_HEX(c) ((c) >= 'A' && (c) <= 'F')
#define BB_IS_HEX(c) (BB_IS_DIGIT(c) || BB_IS_SMALL_HEX(c) || BB_IS_CAPITAL_HEX(c))
#define BB_IS_LETTER(c) (((c) >= 'a' && (c) <= 'z') || ((c) >= 'A' && (c) <= 'Z'))
/* What tokens and hosts both may hold, and then what only one of them may. */
#define BB_IS_COMMON(c)                                                                                                \
    (BB_IS_LETTER(c) || BB_IS_DIGIT(c) || (c) == '!' || (c) == '$' || (c) == '&' || (c) == '\'' || (c) == '*' ||       \
     (c) == '+' || (c) == '-' || (c) == '.' || (c) == '_' || (c) == '~')
#define BB_IS_TOKEN(c) (BB_IS_COMMON(c) || (c) == '#' || (c) == '%' || (c) == '^' || (c) == '`' || (c) == '|')
#define BB_IS_HOST(c) (BB_IS_COMMON(c) || (c) == '(' || (c) == ')' || (c) == ',' || (c) == ';' || (c) == '=')
#define BB_IS_TARGET(c) ((c) > ' ' && (c) < 0x7f && (c) != '#')
#define BB_IS_VALUE(c) ((c) == '\t' || ((c) >= ' ' && (c) != 0x7f))
#define BB_IS_ADDRESS(c) (BB_IS_HEX(c) || (c) == ':' || (c) == '.')

#define BB_CLASS_OF(c)                                                                                                 \
    ((BB_IS_TOKEN(c) ? BB_OCTET_TOKEN : 0) | (BB_IS_TARGET(c) ? BB_OCTET_TARGET : 0) |                                 \
     (BB_IS_VALUE(c) ? BB_OCTET_VALUE : 0) | (BB_IS_HOST(c) ? BB_OCTET_HOST : 0) |                                     \
     (BB_IS_ADDRESS(c) ? BB_OCTET_ADDRESS : 0))
#define BB_HEX_OF(c)                                                                                                   \
    (BB_IS_DIGIT(c)         ? (c) - '0'                                                                                \
     : BB_IS_SMALL_HEX(c)   ? (c) - 'a' + 10                                                                           \
     : BB_IS_CAPITAL_HEX(c) ? (c) - 'A' + 10                                                                           \
                            : BB_OCTET_NOT_HEX)

#define BB_EACH_4(of, c) of(c), of(c + 1), of(c + 2), of(c + 3)
#define BB_EACH_16(of, c) BB_EACH_4(of, c), BB_EACH_4(of, c + 4), BB_EACH_4(of, c + 8), BB_EACH_4(of, c + 12)
#define BB_EACH_64(of, c) BB_EACH_16(of, c), BB_EACH_16(of, c + 16), BB_EACH_16(of, c + 32), BB_EACH_16(of, c + 48)
#define BB_EACH_OCTET(of) BB_EACH_64(of, 0), BB_EACH_64(of, 64), BB_EACH_64(of, 128), BB_EACH_64(of, 192)

static const uint8_t bb_octet_class[256] = {BB_EACH_OCTET(BB_CLASS_OF)};
static const uint8_t bb_octet_hex[256] = {BB_EACH_OCTET(BB_HEX_OF)};

#endif
