/* Bits, Exp-Golomb codes, NAL units and their emulation prevention: what H.264 and HEVC have in common. */
#include <string.h>

#include "simgpu.h"

void put_bits(struct bits *bits, unsigned count, uint32_t value) {
    while (count--) {
        size_t byte = bits->position / 8;
        if (byte < bits->size) {
            if (bits->position % 8 == 0) bits->data[byte] = 0;
            bits->data[byte] |= (uint8_t)((value >> count & 1) << (7 - bits->position % 8));
        }
        bits->position++;
    }
}

void put_ue(struct bits *bits, uint32_t value) {
    unsigned length = 0;
    while ((value + 1) >> (length + 1)) length++;
    put_bits(bits, length, 0);
    put_bits(bits, length + 1, value + 1);
}

void put_se(struct bits *bits, int32_t value) {
    put_ue(bits, value > 0 ? (uint32_t)value * 2 - 1 : (uint32_t)-value * 2);
}

uint32_t get_bits(struct bits *bits, unsigned count) {
    uint32_t value = 0;
    while (count--) {
        size_t byte = bits->position / 8;
        value = value << 1 | (byte < bits->size ? bits->data[byte] >> (7 - bits->position % 8) & 1 : 0u);
        bits->position++;
    }
    return value;
}

uint32_t get_ue(struct bits *bits) {
    unsigned length = 0;
    while (length < 31 && !get_bits(bits, 1)) length++;
    return ((uint32_t)1 << length) - 1 + get_bits(bits, length);
}

int32_t get_se(struct bits *bits) {
    uint32_t code = get_ue(bits);
    return code & 1 ? (int32_t)(code / 2 + 1) : -(int32_t)(code / 2);
}

size_t unescape(const uint8_t *from, size_t size, uint8_t *to, size_t room) {
    size_t written = 0, zeros = 0;
    for (size_t i = 0; i < size && written < room; i++) {
        if (zeros >= 2 && from[i] == 3) {
            zeros = 0;
            continue;
        }
        zeros = from[i] ? 0 : zeros + 1;
        to[written++] = from[i];
    }
    return written;
}

size_t escape(const uint8_t *from, size_t size, uint8_t *to) {
    size_t written = 0, zeros = 0;
    for (size_t i = 0; i < size; i++) {
        if (zeros >= 2 && from[i] <= 3) to[written++] = 3, zeros = 0;
        zeros = from[i] ? 0 : zeros + 1;
        to[written++] = from[i];
    }
    return written;
}

static const uint8_t *start_code(const uint8_t *from, const uint8_t *end) {
    for (; end - from >= 3; from++)
        if (!from[0] && !from[1] && from[2] == 1) return from;
    return NULL;
}

const uint8_t *next_nal(const uint8_t **from, const uint8_t *end, size_t *size) {
    const uint8_t *start = start_code(*from, end);
    if (!start) return NULL;
    start += 3;
    const uint8_t *next = start_code(start, end), *stop = next ? next : end;
    *from = stop;
    while (stop > start && !stop[-1]) stop--; /* the zero byte of a long start code */
    *size = (size_t)(stop - start);
    return start;
}
