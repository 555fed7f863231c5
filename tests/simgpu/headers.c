/* What the application's packed headers say that VA-API's parameters do not: colours, and the size HEVC shows. */
#include "headers.h"

#include <libavcodec/avcodec.h>
#include <string.h>

void facts_default(struct facts *facts) {
    *facts = (struct facts){.sar_num = 0, .sar_den = 1, .primaries = 2, .transfer = 2, .matrix = 2};
}

static void read_vui(struct facts *facts, struct bits *bits) {
    static const uint8_t ratios[17][2] = {{0, 1},   {1, 1},    {12, 11}, {10, 11}, {16, 11}, {40, 33},
                                          {24, 11}, {20, 11},  {32, 11}, {80, 33}, {18, 11}, {15, 11},
                                          {64, 33}, {160, 99}, {4, 3},   {3, 2},   {2, 1}};
    if (get_bits(bits, 1)) {
        uint32_t ratio = get_bits(bits, 8);
        if (ratio < 17) facts->sar_num = ratios[ratio][0], facts->sar_den = ratios[ratio][1];
        if (ratio == 255) facts->sar_num = (int)get_bits(bits, 16), facts->sar_den = (int)get_bits(bits, 16);
    }
    if (get_bits(bits, 1)) get_bits(bits, 1);
    if (!get_bits(bits, 1)) return;
    get_bits(bits, 3);
    facts->full_range = get_bits(bits, 1);
    if (!get_bits(bits, 1)) return;
    facts->primaries = (int)get_bits(bits, 8);
    facts->transfer = (int)get_bits(bits, 8);
    facts->matrix = (int)get_bits(bits, 8);
}

static void skip_list(struct bits *bits, int size) {
    int last = 8, next = 8;
    for (int i = 0; i < size; i++) {
        if (next) next = (last + get_se(bits) + 256) % 256;
        last = next ? next : last;
    }
}

static void read_sequence(struct facts *facts, struct bits *bits) {
    uint32_t profile = get_bits(bits, 8);
    get_bits(bits, 16);
    get_ue(bits);
    if (profile >= 100) { /* High and above */
        if (get_ue(bits) == 3) get_bits(bits, 1);
        get_ue(bits), get_ue(bits), get_bits(bits, 1);
        if (get_bits(bits, 1))
            for (int i = 0; i < 8; i++)
                if (get_bits(bits, 1)) skip_list(bits, i < 6 ? 16 : 64);
    }
    get_ue(bits);
    uint32_t order = get_ue(bits);
    if (order == 0) get_ue(bits);
    if (order == 1) {
        get_bits(bits, 1), get_se(bits), get_se(bits);
        for (uint32_t i = get_ue(bits); i && i < 256; i--) get_se(bits);
    }
    get_ue(bits), get_bits(bits, 1);
    int width = (int)get_ue(bits) * 16 + 16, height = (int)get_ue(bits) * 16 + 16;
    if (!get_bits(bits, 1)) height *= 2, get_bits(bits, 1);
    get_bits(bits, 1);
    if (get_bits(bits, 1)) {
        width -= 2 * (int)get_ue(bits), width -= 2 * (int)get_ue(bits);
        height -= 2 * (int)get_ue(bits), height -= 2 * (int)get_ue(bits);
    }
    facts->width = width, facts->height = height;
    if (get_bits(bits, 1)) read_vui(facts, bits);
}

void facts_h264(struct facts *facts, const uint8_t *stream, size_t size) {
    const uint8_t *at = stream, *nal;
    size_t length;
    while ((nal = next_nal(&at, stream + size, &length)))
        if (length > 4 && (nal[0] & 31) == 7) {
            uint8_t plain[512];
            struct bits bits = {plain, unescape(nal + 1, length - 1, plain, sizeof plain), 0};
            read_sequence(facts, &bits);
        }
}

void facts_hevc(struct facts *facts, const uint8_t *stream, size_t size) {
    const AVCodec *codec = avcodec_find_decoder_by_name("hevc");
    AVCodecContext *av = codec ? avcodec_alloc_context3(codec) : NULL;
    if (!av) return;
    av->thread_count = 1;
    av->log_level_offset = 200;
    av->extradata = av_mallocz(size + AV_INPUT_BUFFER_PADDING_SIZE);
    if (av->extradata && size) {
        memcpy(av->extradata, stream, size);
        av->extradata_size = (int)size;
        if (avcodec_open2(av, codec, NULL) == 0 && av->width > 0) {
            facts->width = av->width, facts->height = av->height;
            facts->sar_num = av->sample_aspect_ratio.num, facts->sar_den = av->sample_aspect_ratio.den;
            facts->primaries = av->color_primaries, facts->transfer = av->color_trc, facts->matrix = av->colorspace;
            facts->full_range = av->color_range == AVCOL_RANGE_JPEG;
        }
    }
    avcodec_free_context(&av);
}

static void skip_operating_points(struct bits *bits) {
    for (uint32_t i = get_bits(bits, 5) + 1; i; i--) {
        get_bits(bits, 12);
        if (get_bits(bits, 5) > 7) get_bits(bits, 1); /* the level, and of the higher ones the tier */
    }
}

static void skip_tools(struct bits *bits) {
    get_bits(bits, 1 + 3 + 4); /* frame IDs, superblocks and intra tools, inter tools */
    bool ordered = get_bits(bits, 1);
    if (ordered) get_bits(bits, 2);
    bool chosen = get_bits(bits, 1), screen = chosen || get_bits(bits, 1);
    if (screen && !get_bits(bits, 1)) get_bits(bits, 1);
    if (ordered) get_bits(bits, 3);
    get_bits(bits, 3); /* filters */
}

/* An OBU with a sequence header as ffmpeg packs it: no timing, no reduced still picture. */
void facts_av1(struct facts *facts, const uint8_t *stream, size_t size) {
    struct bits bits = {(uint8_t *)stream, size, 0};
    uint32_t header = get_bits(&bits, 8);
    if ((header >> 3 & 15) != 1) return;
    if (header & 4) get_bits(&bits, 8);                 /* the extension */
    while (header & 2 && get_bits(&bits, 8) & 0x80) {}  /* the size */
    if (get_bits(&bits, 3 + 1 + 1 + 1 + 1) & 7) return; /* profile, still, reduced, timing, delay */
    skip_operating_points(&bits);
    uint32_t width = get_bits(&bits, 4) + 1, height = get_bits(&bits, 4) + 1;
    get_bits(&bits, width), get_bits(&bits, height);
    skip_tools(&bits);
    get_bits(&bits, 2); /* depth, monochrome */
    if (get_bits(&bits, 1)) {
        facts->primaries = (int)get_bits(&bits, 8);
        facts->transfer = (int)get_bits(&bits, 8);
        facts->matrix = (int)get_bits(&bits, 8);
    }
    facts->full_range = get_bits(&bits, 1);
}
