/* B-frames, as far as others see them: pictures that are coded in another order than they are shown in.
 *
 * libx264 looks ahead before it makes a B-frame, and VA-API wants each picture coded at once. So it codes P-frames in
 * the order in which they come, and the order in which they are shown is written into their headers afterwards:
 * pictures are counted by type 0 instead of 2, and one may overtake others. What refers to what stays as it was. */
#include <stdlib.h>
#include <string.h>

#include "simgpu.h"

enum { ORDER_BITS = 16, OVERTAKING = 2 };

static uint32_t copy_bits(struct bits *from, struct bits *to, unsigned count) {
    uint32_t value = get_bits(from, count);
    put_bits(to, count, value);
    return value;
}

static uint32_t copy_ue(struct bits *from, struct bits *to) {
    uint32_t value = get_ue(from);
    put_ue(to, value);
    return value;
}

static void copy_vui(struct bits *from, struct bits *to) {
    if (copy_bits(from, to, 1) && copy_bits(from, to, 8) == 255) copy_bits(from, to, 32); /* shape of pixels */
    if (copy_bits(from, to, 1)) copy_bits(from, to, 1);                                   /* overscan */
    if (copy_bits(from, to, 1)) {
        copy_bits(from, to, 4);
        if (copy_bits(from, to, 1)) copy_bits(from, to, 24); /* colours */
    }
    if (copy_bits(from, to, 1)) copy_ue(from, to), copy_ue(from, to); /* place of chroma */
    if (copy_bits(from, to, 1)) copy_bits(from, to, 32), copy_bits(from, to, 32), copy_bits(from, to, 1); /* timing */
    copy_bits(from, to, 3); /* neither kind of HRD, libx264 is not told to; no timing of pictures */
    bool restricted = get_bits(from, 1);
    put_bits(to, 1, 1);
    if (restricted) copy_bits(from, to, 1);
    else put_bits(to, 1, 1);
    for (int i = 0; i < 4; i++) put_ue(to, restricted ? get_ue(from) : i < 2 ? 0 : 16);
    put_ue(to, OVERTAKING);
    put_ue(to, OVERTAKING + 1);
}

static size_t end_unit(struct bits *bits, uint8_t *to) {
    put_bits(bits, 1, 1);
    while (bits->position % 8) put_bits(bits, 1, 0);
    return escape(bits->data, bits->position / 8, to);
}

size_t reorder_sequence(struct reorder *reorder, const uint8_t *nal, size_t size, uint8_t *to) {
    uint8_t plain[512], changed[512];
    struct bits from = {plain, unescape(nal, size, plain, sizeof plain), 0}, bits = {changed, sizeof changed, 0};
    copy_bits(&from, &bits, 8);
    uint32_t profile = copy_bits(&from, &bits, 8);
    copy_bits(&from, &bits, 16);
    copy_ue(&from, &bits);
    if (profile >= 100) {
        copy_ue(&from, &bits), copy_ue(&from, &bits), copy_ue(&from, &bits);
        copy_bits(&from, &bits, 2); /* no scaling lists: libx264 is not told any */
    }
    reorder->number_bits = copy_ue(&from, &bits) + 4;
    if (get_ue(&from) == 0) get_ue(&from);
    put_ue(&bits, 0), put_ue(&bits, ORDER_BITS - 4);
    copy_ue(&from, &bits);
    copy_bits(&from, &bits, 1);
    copy_ue(&from, &bits), copy_ue(&from, &bits);
    copy_bits(&from, &bits, 2);
    if (copy_bits(&from, &bits, 1))
        for (int i = 0; i < 4; i++) copy_ue(&from, &bits);
    if (copy_bits(&from, &bits, 1)) copy_vui(&from, &bits);
    return end_unit(&bits, to);
}

static void copy_references(struct bits *from, struct bits *to, bool inter, uint32_t importance, bool idr) {
    if (inter) {
        if (copy_bits(from, to, 1)) copy_ue(from, to); /* their number */
        if (copy_bits(from, to, 1))
            while (copy_ue(from, to) != 3 && from->position < from->size * 8) copy_ue(from, to);
    }
    if (!importance) return;
    if (idr) copy_bits(from, to, 2);
    else if (copy_bits(from, to, 1))
        for (uint32_t command; (command = copy_ue(from, to)) && from->position < from->size * 8;) {
            if (command != 5) copy_ue(from, to);
            if (command == 3) copy_ue(from, to);
        }
}

/* libx264's slices at anything but Baseline: CABAC, no weights, a deblocking filter that can be controlled. */
size_t reorder_slice(const struct reorder *reorder, int order, const uint8_t *nal, size_t size, uint8_t *to) {
    uint8_t *plain = malloc(size), *changed = malloc(size + 64);
    size_t written = 0;
    if (plain && changed) {
        struct bits from = {plain, unescape(nal, size, plain, size), 0}, bits = {changed, size + 64, 0};
        uint32_t header = copy_bits(&from, &bits, 8);
        bool idr = (header & 31) == 5;
        copy_ue(&from, &bits);
        bool inter = copy_ue(&from, &bits) % 5 == 0;
        copy_ue(&from, &bits);
        copy_bits(&from, &bits, reorder->number_bits);
        if (idr) copy_ue(&from, &bits);
        put_bits(&bits, ORDER_BITS, (uint32_t)order & ((1u << ORDER_BITS) - 1));
        copy_references(&from, &bits, inter, header >> 5 & 3, idr);
        if (inter) copy_ue(&from, &bits);
        copy_ue(&from, &bits);
        if (copy_ue(&from, &bits) != 1) copy_ue(&from, &bits), copy_ue(&from, &bits);
        while (bits.position % 8) put_bits(&bits, 1, 1);
        size_t start = (from.position + 7) / 8, rest = start < from.size ? from.size - start : 0;
        memcpy(changed + bits.position / 8, plain + start, rest);
        written = escape(changed, bits.position / 8 + rest, to);
    }
    free(plain);
    free(changed);
    return written;
}
