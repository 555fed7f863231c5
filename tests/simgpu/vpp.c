/* VideoProc: scaling, cropping, conversion, deinterlacing, rotation and mirroring, overlay with alpha, tone mapping. */
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <stdlib.h>
#include <string.h>

#include "simgpu.h"

enum { MAX_PIPELINES = 8 };

struct processor {
    VAProcPipelineParameterBuffer pipelines[MAX_PIPELINES];
    int count;
};

static enum AVPixelFormat pixel_format(uint32_t fourcc) {
    switch (fourcc) {
    case VA_FOURCC_NV12: return AV_PIX_FMT_NV12;
    case VA_FOURCC_P010: return AV_PIX_FMT_P010LE;
    case VA_FOURCC_I420:
    case VA_FOURCC_YV12: return AV_PIX_FMT_YUV420P;
    case VA_FOURCC('I', '0', '1', '0'): return AV_PIX_FMT_YUV420P10LE;
    case VA_FOURCC_BGRA: return AV_PIX_FMT_BGRA;
    case VA_FOURCC_BGRX: return AV_PIX_FMT_BGR0;
    case VA_FOURCC_RGBA: return AV_PIX_FMT_RGBA;
    case VA_FOURCC_RGBX: return AV_PIX_FMT_RGB0;
    default: return AV_PIX_FMT_NONE;
    }
}

static int depth_of(uint32_t fourcc) {
    return fourcc == VA_FOURCC_P010 || fourcc == VA_FOURCC('I', '0', '1', '0') ? 2 : 1;
}
static bool is_rgb(const struct picture *picture) { return picture->planes == 1; }
static int chroma(int size) { return (size + 1) / 2; }

static void copy_rows(const struct picture *from, const struct picture *to, int plane, size_t bytes, int rows) {
    for (int row = 0; row < rows; row++)
        memcpy(to->data[plane] + (ptrdiff_t)row * to->stride[plane],
               from->data[plane] + (ptrdiff_t)row * from->stride[plane], bytes);
}

/* Copies of the commonest kind, bit for bit: the same format, or planes woven into NV12 or P010 and back. */
static bool copy_exactly(const struct picture *from, const struct picture *to) {
    int width = to->width, height = to->height, depth = depth_of(from->fourcc);
    if (from->width != width || from->height != height || depth != depth_of(to->fourcc)) return false;
    if (from->fourcc == to->fourcc) {
        size_t pixel = is_rgb(from) ? 4 : (size_t)depth;
        copy_rows(from, to, 0, (size_t)width * pixel, height);
        for (int i = 1; i < from->planes; i++)
            copy_rows(from, to, i, (size_t)chroma(width) * pixel * (from->planes == 2 ? 2 : 1), chroma(height));
        return true;
    }
    bool weave = from->planes == 3 && to->planes == 2, unweave = from->planes == 2 && to->planes == 3;
    if (from->fourcc == VA_FOURCC_YV12 || to->fourcc == VA_FOURCC_YV12 || !(weave || unweave)) return false;
    if (depth == 1) {
        copy_rows(from, to, 0, (size_t)width, height);
        for (int y = 0; y < chroma(height); y++)
            for (int i = 0; i < 2; i++) {
                const uint8_t *in = weave ? from->data[1 + i] + (ptrdiff_t)y * from->stride[1 + i]
                                          : from->data[1] + (ptrdiff_t)y * from->stride[1] + i;
                uint8_t *out = weave ? to->data[1] + (ptrdiff_t)y * to->stride[1] + i
                                     : to->data[1 + i] + (ptrdiff_t)y * to->stride[1 + i];
                for (int x = 0; x < chroma(width); x++) out[weave ? 2 * x : x] = in[weave ? x : 2 * x];
            }
        return true;
    }
    for (int plane = 0; plane < 3; plane++) /* P010 has its ten bits at the top */
        for (int y = 0; y < (plane ? chroma(height) : height); y++) {
            int inside = plane > 0, woven = plane > 0 ? 2 : 1;
            const uint16_t *in = (const void *)(from->data[weave ? plane : inside] +
                                                (ptrdiff_t)y * from->stride[weave ? plane : inside]);
            uint16_t *out =
                (void *)(to->data[weave ? inside : plane] + (ptrdiff_t)y * to->stride[weave ? inside : plane]);
            int at = plane == 2;
            for (int x = 0; x < (plane ? chroma(width) : width); x++) {
                if (weave) out[x * woven + at] = (uint16_t)(in[x] << 6);
                else out[x] = in[x * woven + at] >> 6;
            }
        }
    return true;
}

struct colours {
    int matrix; /* SWS_CS_…, 0: not said */
    int range;  /* VA_SOURCE_RANGE_…, 0: not said */
};

static bool are_same(struct colours a, struct colours b) { return a.matrix == b.matrix && a.range == b.range; }

static const int *coefficients(struct colours colours) {
    return sws_getCoefficients(colours.matrix ? colours.matrix : SWS_CS_ITU601);
}

/* The colours are told before it is opened, or it may choose a shorter way that does not know of them. */
static struct SwsContext *scaler(const struct picture *in, const struct picture *out, struct colours source,
                                 struct colours target) {
    enum AVPixelFormat before = pixel_format(in->fourcc), after = pixel_format(out->fourcc);
    bool full = source.range == VA_SOURCE_RANGE_FULL, full_after = target.range == VA_SOURCE_RANGE_FULL;
    if (before == AV_PIX_FMT_NONE || after == AV_PIX_FMT_NONE || in->width < 1 || in->height < 1) return NULL;
    struct SwsContext *sws = sws_alloc_context();
    if (!sws) return NULL;
    av_opt_set_int(sws, "srcw", in->width, 0), av_opt_set_int(sws, "srch", in->height, 0);
    av_opt_set_int(sws, "dstw", out->width, 0), av_opt_set_int(sws, "dsth", out->height, 0);
    av_opt_set_int(sws, "src_format", before, 0), av_opt_set_int(sws, "dst_format", after, 0);
    av_opt_set_int(sws, "src_range", full, 0), av_opt_set_int(sws, "dst_range", full_after, 0);
    av_opt_set_int(sws, "sws_flags", SWS_BICUBIC | SWS_ACCURATE_RND, 0);
    sws_setColorspaceDetails(sws, coefficients(source), full, coefficients(target), full_after, 0, 1 << 16, 1 << 16);
    if (sws_init_context(sws, NULL, NULL) >= 0) return sws;
    sws_freeContext(sws);
    return NULL;
}

static bool scale(const struct picture *from, const struct picture *to, struct colours source, struct colours target) {
    struct picture in = *from, out = *to;
    for (struct picture *picture = &in;; picture = &out) {
        if (picture->fourcc == VA_FOURCC_YV12) {
            uint8_t *v = picture->data[1];
            picture->data[1] = picture->data[2], picture->data[2] = v;
            picture->fourcc = VA_FOURCC_I420;
        }
        if (picture == &out) break;
    }
    if (are_same(source, target) && copy_exactly(&in, &out)) return true;
    struct SwsContext *sws = scaler(&in, &out, source, target);
    if (!sws) return false;
    const uint8_t *data[4] = {in.data[0], in.data[1], in.data[2]};
    uint8_t *targets[4] = {out.data[0], out.data[1], out.data[2]};
    int strides[4] = {in.stride[0], in.stride[1], in.stride[2]};
    int target_strides[4] = {out.stride[0], out.stride[1], out.stride[2]};
    bool done = sws_scale(sws, data, strides, 0, in.height, targets, target_strides) > 0;
    sws_freeContext(sws);
    return done;
}

static const struct colours unsaid = {0};

bool picture_convert(const struct picture *from, const struct picture *to) { return scale(from, to, unsaid, unsaid); }

static struct picture region_of(const struct picture *picture, const VARectangle *region) {
    struct picture part = *picture;
    if (!region) return part;
    int x = region->x < 0 ? 0 : region->x, y = region->y < 0 ? 0 : region->y;
    if (x >= picture->width || y >= picture->height) return part;
    if (!is_rgb(picture)) x &= ~1, y &= ~1;
    int depth = depth_of(picture->fourcc);
    part.width = region->width < picture->width - x ? region->width : picture->width - x;
    part.height = region->height < picture->height - y ? region->height : picture->height - y;
    part.data[0] += (ptrdiff_t)y * part.stride[0] + (ptrdiff_t)x * (is_rgb(picture) ? 4 : depth);
    for (int i = 1; i < part.planes; i++)
        part.data[i] += (ptrdiff_t)y / 2 * part.stride[i] + (ptrdiff_t)(part.planes == 2 ? x : x / 2) * depth;
    return part;
}

static struct picture field_of(const struct picture *picture, int field) { /* every other line */
    struct picture lines = *picture;
    for (int i = 0; i < lines.planes; i++) lines.data[i] += field * lines.stride[i], lines.stride[i] *= 2;
    lines.height /= 2;
    return lines;
}

/* One pixel or pair of chroma values of `size` bytes after the other, turned and mirrored. */
static void turn_plane(const struct picture *from, const struct picture *to, int plane, size_t size, int width,
                       int height, uint32_t rotation, uint32_t mirror) {
    int turned_width = rotation == VA_ROTATION_90 || rotation == VA_ROTATION_270 ? height : width;
    int turned_height = turned_width == width && !(rotation & 1) ? height : width;
    for (int y = 0; y < turned_height; y++)
        for (int x = 0; x < turned_width; x++) {
            int from_x = x, from_y = y;
            if (rotation == VA_ROTATION_90) from_x = y, from_y = height - 1 - x;
            if (rotation == VA_ROTATION_180) from_x = width - 1 - x, from_y = height - 1 - y;
            if (rotation == VA_ROTATION_270) from_x = width - 1 - y, from_y = x;
            if (mirror & VA_MIRROR_HORIZONTAL) from_x = width - 1 - from_x;
            if (mirror & VA_MIRROR_VERTICAL) from_y = height - 1 - from_y;
            memcpy(to->data[plane] + (ptrdiff_t)y * to->stride[plane] + (ptrdiff_t)((size_t)x * size),
                   from->data[plane] + (ptrdiff_t)from_y * from->stride[plane] + (ptrdiff_t)((size_t)from_x * size),
                   size);
        }
}

static void turn(const struct picture *from, const struct picture *to, uint32_t rotation, uint32_t mirror) {
    size_t pixel = is_rgb(from) ? 4 : (size_t)depth_of(from->fourcc);
    turn_plane(from, to, 0, pixel, from->width, from->height, rotation, mirror);
    for (int i = 1; i < from->planes; i++)
        turn_plane(from, to, i, from->planes == 2 ? 2 * pixel : pixel, chroma(from->width), chroma(from->height),
                   rotation, mirror);
}

/* Puts RGB with alpha over NV12 of the same size, BT.601. */
static bool blend(const struct picture *over, const struct picture *to, const VABlendState *state) {
    struct picture colours, alpha = *over;
    float global = state->flags & VA_BLEND_GLOBAL_ALPHA ? state->global_alpha : 1;
    bool premultiplied = state->flags & VA_BLEND_PREMULTIPLIED_ALPHA;
    size_t size = picture_layout(&colours, VA_FOURCC_NV12, over->width, over->height, NULL);
    uint8_t *memory = malloc(size + 64);
    if (!memory) return false;
    picture_layout(&colours, VA_FOURCC_NV12, over->width, over->height, memory);
    bool done = scale(over, &colours, unsaid, unsaid);
    bool opaque = over->fourcc == VA_FOURCC_BGRX || over->fourcc == VA_FOURCC_RGBX;
    for (int plane = 0; done && plane < 2; plane++)
        for (int y = 0; y < (plane ? to->height / 2 : to->height); y++)
            for (int x = 0; x < to->width; x++) {
                const uint8_t *at =
                    alpha.data[0] + (ptrdiff_t)(plane ? y * 2 : y) * alpha.stride[0] + (plane ? x & ~1 : x) * 4;
                float share = (opaque ? 255.f : at[3]) / 255.f * global;
                uint8_t *pixel = to->data[plane] + (ptrdiff_t)y * to->stride[plane] + x;
                float ours = colours.data[plane][(ptrdiff_t)y * colours.stride[plane] + x], black = plane ? 128 : 16;
                float mixed = premultiplied ? (ours - black) * global + black * share : ours * share;
                *pixel = (uint8_t)(mixed + *pixel * (1 - share) + .5f);
            }
    free(memory);
    return done;
}

static const void *filter_of(struct device *device, const VAProcPipelineParameterBuffer *pipeline,
                             VAProcFilterType type) {
    for (unsigned i = 0; i < pipeline->num_filters; i++) {
        struct buffer *buffer = objects_get(device, KIND_BUFFER, pipeline->filters[i]);
        const VAProcFilterParameterBufferBase *filter = buffer ? (const void *)buffer->data : NULL;
        if (filter && filter->type == type) return filter;
    }
    return NULL;
}

static struct colours colours_of(VAProcColorStandardType standard, const VAProcColorProperties *properties) {
    struct colours colours = {.range = properties->color_range};
    unsigned code = properties->matrix_coefficients; /* of H.273 */
    if (standard == VAProcColorStandardBT709) colours.matrix = SWS_CS_ITU709;
    if (standard == VAProcColorStandardBT601) colours.matrix = SWS_CS_ITU601;
    if (standard != VAProcColorStandardExplicit) return colours;
    if (code == 1) colours.matrix = SWS_CS_ITU709;
    if (code == 5 || code == 6) colours.matrix = SWS_CS_ITU601;
    if (code == 9) colours.matrix = SWS_CS_BT2020;
    return colours;
}

/* Between RGB and YUV only YUV's are asked for; between YUV, what one of the two does not say stays as it is. */
static void settle_colours(const struct picture *from, const struct picture *to, struct colours *before,
                           struct colours *after) {
    if (is_rgb(from)) *before = *after;
    if (is_rgb(to) || !before->matrix || !after->matrix) after->matrix = before->matrix;
    if (is_rgb(to) || !before->range || !after->range) after->range = before->range;
}

/* The brightest that the metadata speak of. */
static float nits_of(const VAProcFilterParameterBufferHDRToneMapping *filter) {
    const VAHdrMetaDataHDR10 *hdr = filter->data.metadata;
    if (!hdr || filter->data.metadata_size < sizeof *hdr) return 1000;
    float nits = hdr->max_content_light_level ? hdr->max_content_light_level
                                              : (float)hdr->max_display_mastering_luminance / 10000;
    return nits < 100 ? 1000 : nits > 10000 ? 10000 : nits;
}

static bool tone_map_scaled(const struct picture *from, const struct picture *to, float nits) {
    if (from->width == to->width && from->height == to->height) return tone_map(from, to, nits);
    struct picture between;
    uint8_t *memory = malloc(picture_layout(&between, from->fourcc, to->width, to->height, NULL) + 64);
    if (!memory) return false;
    picture_layout(&between, from->fourcc, to->width, to->height, memory);
    bool done = picture_convert(from, &between) && tone_map(&between, to, nits);
    free(memory);
    return done;
}

bool picture_process(const VAProcPipelineParameterBuffer *pipeline,
                     const VAProcFilterParameterBufferDeinterlacing *filter,
                     const VAProcFilterParameterBufferHDRToneMapping *tones, const struct picture *input,
                     const struct picture *target) {
    struct picture from = region_of(input, pipeline->surface_region), to = region_of(target, pipeline->output_region);
    uint8_t *memory = NULL;
    struct colours before = colours_of(pipeline->surface_color_standard, &pipeline->input_color_properties);
    struct colours after = colours_of(pipeline->output_color_standard, &pipeline->output_color_properties);
    settle_colours(&from, &to, &before, &after);

    if (tones && from.planes == 2 && to.planes == 2) return tone_map_scaled(&from, &to, nits_of(tones));

    if (filter && filter->algorithm != VAProcDeinterlacingWeave && !(filter->flags & VA_DEINTERLACING_ONE_FIELD))
        from = field_of(&from, (filter->flags & VA_DEINTERLACING_BOTTOM_FIELD) != 0);

    bool turned = pipeline->rotation_state || pipeline->mirror_state;
    bool mixed = pipeline->blend_state && pipeline->blend_state->flags && target->fourcc == VA_FOURCC_NV12;
    if (!turned && !(mixed && is_rgb(&from))) return scale(&from, &to, before, after);

    struct picture between; /* the input at the size of the output, before it is turned or laid over */
    bool sideways = pipeline->rotation_state == VA_ROTATION_90 || pipeline->rotation_state == VA_ROTATION_270;
    int width = sideways ? to.height : to.width, height = sideways ? to.width : to.height;
    uint32_t fourcc = turned ? to.fourcc : from.fourcc;
    size_t size = picture_layout(&between, fourcc, width, height, NULL);
    if (!size || !(memory = malloc(size + 64))) return false;
    picture_layout(&between, fourcc, width, height, memory);
    bool done = scale(&from, &between, before, after);
    if (done && turned) turn(&between, &to, pipeline->rotation_state, pipeline->mirror_state);
    else if (done) done = blend(&between, &to, pipeline->blend_state);
    free(memory);
    return done;
}

struct processor *processor_open(void) {
    return calloc(1, sizeof(struct processor));
}
void processor_close(struct processor *processor) { free(processor); }

VAStatus processor_render(struct processor *processor, const struct buffer *buffer) {
    if (buffer->type != VAProcPipelineParameterBufferType) return VA_STATUS_SUCCESS;
    if (processor->count == MAX_PIPELINES) return VA_STATUS_ERROR_MAX_NUM_EXCEEDED;
    if (buffer->size < sizeof *processor->pipelines) return VA_STATUS_ERROR_INVALID_PARAMETER;
    memcpy(&processor->pipelines[processor->count++], buffer->data, sizeof *processor->pipelines);
    return VA_STATUS_SUCCESS;
}

VAStatus processor_end(struct device *device, struct processor *processor, struct surface *target,
                       int64_t (*book)(void *, int64_t after), void *booking) {
    int count = processor->count;
    processor->count = 0;
    for (int i = 0; i < count; i++) {
        struct surface *input = objects_get(device, KIND_SURFACE, processor->pipelines[i].surface);
        if (!input) return VA_STATUS_ERROR_INVALID_SURFACE;
        int64_t ready = book(booking, input->ready);
        const VAProcPipelineParameterBuffer *pipeline = &processor->pipelines[i];
        if (!picture_process(pipeline, filter_of(device, pipeline, VAProcFilterDeinterlacing),
                             filter_of(device, pipeline, VAProcFilterHighDynamicRangeToneMapping), &input->picture,
                             &target->picture))
            return VA_STATUS_ERROR_OPERATION_FAILED;
        if (ready > target->ready) target->ready = ready;
    }
    return VA_STATUS_SUCCESS;
}

/* ---- what it can do ---- */

static VAStatus query_filters(VADriverContextP va, VAContextID context, VAProcFilterType *filters, unsigned *count) {
    (void)context;
    unsigned known = device_personality(device_of(va)).tonemap ? 2 : 1;
    if (*count < known) return VA_STATUS_ERROR_MAX_NUM_EXCEEDED;
    filters[0] = VAProcFilterDeinterlacing;
    if (known == 2) filters[1] = VAProcFilterHighDynamicRangeToneMapping;
    *count = known;
    return VA_STATUS_SUCCESS;
}

static VAStatus query_deinterlacing(VAProcFilterCapDeinterlacing *caps, unsigned *count) {
    if (*count < 2) return VA_STATUS_ERROR_MAX_NUM_EXCEEDED;
    caps[0].type = VAProcDeinterlacingBob;
    caps[1].type = VAProcDeinterlacingWeave;
    *count = 2;
    return VA_STATUS_SUCCESS;
}

static VAStatus query_tone_mapping(VAProcFilterCapHighDynamicRange *caps, unsigned *count) {
    if (*count < 1) return VA_STATUS_ERROR_MAX_NUM_EXCEEDED;
    caps[0].metadata_type = VAProcHighDynamicRangeMetadataHDR10;
    caps[0].caps_flag = VA_TONE_MAPPING_HDR_TO_SDR;
    *count = 1;
    return VA_STATUS_SUCCESS;
}

static VAStatus query_filter_caps(VADriverContextP va, VAContextID context, VAProcFilterType type, void *caps,
                                  unsigned *count) {
    (void)context;
    if (type == VAProcFilterDeinterlacing) return query_deinterlacing(caps, count);
    if (type == VAProcFilterHighDynamicRangeToneMapping && device_personality(device_of(va)).tonemap)
        return query_tone_mapping(caps, count);
    return VA_STATUS_ERROR_UNSUPPORTED_FILTER;
}

static VAStatus query_pipeline_caps(VADriverContextP va, VAContextID context, VABufferID *filters, unsigned count,
                                    VAProcPipelineCaps *caps) {
    static VAProcColorStandardType standards[] = {VAProcColorStandardBT601, VAProcColorStandardBT709,
                                                  VAProcColorStandardExplicit};
    (void)context, (void)filters, (void)count;
    struct personality is = device_personality(device_of(va));
    *caps = (VAProcPipelineCaps){
        .input_color_standards = standards,
        .num_input_color_standards = 3,
        .output_color_standards = standards,
        .num_output_color_standards = 3,
        .rotation_flags = 1 << VA_ROTATION_90 | 1 << VA_ROTATION_180 | 1 << VA_ROTATION_270,
        .mirror_flags = VA_MIRROR_HORIZONTAL | VA_MIRROR_VERTICAL,
        .blend_flags = is.overlay ? VA_BLEND_GLOBAL_ALPHA | VA_BLEND_PREMULTIPLIED_ALPHA : 0,
        .min_input_width = 16,
        .min_input_height = 16,
        .min_output_width = 16,
        .min_output_height = 16,
        .max_input_width = (uint32_t)is.max_width,
        .max_input_height = (uint32_t)is.max_height,
        .max_output_width = (uint32_t)is.max_width,
        .max_output_height = (uint32_t)is.max_height,
    };
    return VA_STATUS_SUCCESS;
}

void vpp_table(struct VADriverVTableVPP *table) {
    table->version = VA_DRIVER_VTABLE_VPP_VERSION;
    table->vaQueryVideoProcFilters = query_filters;
    table->vaQueryVideoProcFilterCaps = query_filter_caps;
    table->vaQueryVideoProcPipelineCaps = query_pipeline_caps;
}
