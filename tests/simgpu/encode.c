/* Encoding: one picture in and one out, with the rate control that VA-API was asked for. libx264 and libx265 are here,
 * those for VP9 and AV1 in encode_frames.c.
 *
 * The encoder writes its own parameter sets; the application's packed ones tell it what to show (colours, cropping),
 * its packed SEI messages go into the stream, its packed slice headers are dropped. */
#include <libavutil/opt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coder.h"

static bool is_hevc(const struct encoder *encoder) { return encoder->codec == CODEC_HEVC; }
static bool has_units(const struct encoder *encoder) { return is_hevc(encoder) || encoder->codec == CODEC_H264; }

struct encoder *encoder_open(const struct context *context, const struct personality *is) {
    struct encoder *encoder = calloc(1, sizeof *encoder);
    if (!encoder) return NULL;
    VAProfile profile = encoder->profile = context->config.profile;
    encoder->ten_bit = context->config.format == VA_RT_FORMAT_YUV420_10;
    encoder->codec = codec_of(profile);
    encoder->reorders = is->b_frames && (profile == VAProfileH264Main || profile == VAProfileH264High);
    encoder->rate_control = context->config.rate_control;
    snprintf(encoder->preset, sizeof encoder->preset, "%s", is_hevc(encoder) ? is->preset_hevc : is->preset_h264);
    facts_default(&encoder->wanted.facts);
    encoder->wanted.width = context->width, encoder->wanted.height = context->height;
    encoder->wanted.frame_num = 25, encoder->wanted.frame_den = 1;
    if (!(encoder->packet = av_packet_alloc())) {
        free(encoder);
        return NULL;
    }
    return encoder;
}

void encoder_close(struct encoder *encoder) {
    if (!encoder) return;
    avcodec_free_context(&encoder->av);
    av_packet_free(&encoder->packet);
    av_frame_free(&encoder->planes);
    free(encoder);
}

/* ---- what is asked for ---- */

static void take_sequence_h264(struct settings *wanted, const VAEncSequenceParameterBufferH264 *sequence) {
    wanted->width = sequence->picture_width_in_mbs * 16;
    wanted->height = sequence->picture_height_in_mbs * 16;
    if (sequence->frame_cropping_flag) {
        wanted->width -= 2 * (int)(sequence->frame_crop_left_offset + sequence->frame_crop_right_offset);
        wanted->height -= 2 * (int)(sequence->frame_crop_top_offset + sequence->frame_crop_bottom_offset);
    }
    wanted->level = sequence->level_idc;
    if (sequence->bits_per_second && !wanted->bits) wanted->bits = wanted->target = sequence->bits_per_second;
    if (sequence->num_units_in_tick && sequence->time_scale) {
        wanted->frame_num = (int)(sequence->time_scale / 2);
        wanted->frame_den = (int)sequence->num_units_in_tick;
    }
}

static void take_sequence_hevc(struct settings *wanted, const VAEncSequenceParameterBufferHEVC *sequence) {
    wanted->width = sequence->pic_width_in_luma_samples;
    wanted->height = sequence->pic_height_in_luma_samples;
    if (sequence->bits_per_second && !wanted->bits) wanted->bits = wanted->target = sequence->bits_per_second;
    if (sequence->vui_num_units_in_tick && sequence->vui_time_scale) {
        wanted->frame_num = (int)sequence->vui_time_scale;
        wanted->frame_den = (int)sequence->vui_num_units_in_tick;
    }
}

static void take_misc(struct settings *wanted, const VAEncMiscParameterBuffer *misc) {
    const void *data = misc->data;
    if (misc->type == VAEncMiscParameterTypeRateControl) {
        const VAEncMiscParameterRateControl *rate = data;
        wanted->bits = rate->bits_per_second;
        wanted->target = wanted->bits * (rate->target_percentage ? rate->target_percentage : 100) / 100;
        wanted->quality = (int)(rate->ICQ_quality_factor ? rate->ICQ_quality_factor : rate->quality_factor);
    } else if (misc->type == VAEncMiscParameterTypeHRD) {
        const VAEncMiscParameterHRD *hrd = data;
        wanted->buffer = hrd->buffer_size;
        wanted->fullness = hrd->initial_buffer_fullness;
    } else if (misc->type == VAEncMiscParameterTypeFrameRate) {
        const VAEncMiscParameterFrameRate *rate = data;
        wanted->frame_num = rate->framerate & 0xffff;
        wanted->frame_den = (int)(rate->framerate >> 16 ? rate->framerate >> 16 : 1);
        if (!wanted->frame_num) wanted->frame_num = 25;
    }
}

static unsigned type_of(const struct encoder *encoder, const uint8_t *nal) {
    return is_hevc(encoder) ? nal[0] >> 1 & 63 : nal[0] & 31;
}

/* Delimiters and messages are taken over, but those that depend on timing the encoder does not write (buffering
 * periods, picture timing) stay out, and of what comes with a slice header all but the delimiter. */
static bool is_welcome(const struct encoder *encoder, const uint8_t *nal, size_t size) {
    if (size < 3) return size == 2 && !is_hevc(encoder) && (nal[0] & 31) == 9;
    unsigned type = type_of(encoder, nal);
    if (type == (is_hevc(encoder) ? 35 : 9)) return true;
    if (encoder->header_type == VAEncPackedHeaderSlice) return false;
    return is_hevc(encoder) ? type == 39 : type == 6 && nal[1] > 1;
}

static void take_header(struct encoder *encoder, const struct buffer *buffer) {
    const uint8_t *at = buffer->data, *end = at + (size_t)buffer->size * buffer->elements, *nal;
    size_t size;
    if (encoder->header_type == VAEncPackedHeaderSequence) {
        encoder->sequence_size = (size_t)(end - at) < HEADER_ROOM ? (size_t)(end - at) : 0;
        memcpy(encoder->sequence, at, encoder->sequence_size);
    }
    while ((nal = next_nal(&at, end, &size))) {
        size_t room = HEADER_ROOM - encoder->messages_size;
        if (!is_welcome(encoder, nal, size) || size * 3 / 2 + 8 > room) continue;
        uint8_t *to = encoder->messages + encoder->messages_size;
        memcpy(to, (const uint8_t[]){0, 0, 0, 1}, 4);
        size_t written = size;
        if (encoder->header_escaped) memcpy(to + 4, nal, size);
        else written = escape(nal, size, to + 4);
        encoder->messages_size += 4 + written;
    }
}

static void take_picture(struct encoder *encoder, const void *data) {
    if (is_hevc(encoder)) {
        const VAEncPictureParameterBufferHEVC *picture = data;
        encoder->coded = picture->coded_buf;
        encoder->idr = picture->pic_fields.bits.idr_pic_flag;
        encoder->initial_qp = picture->pic_init_qp;
    } else {
        const VAEncPictureParameterBufferH264 *picture = data;
        encoder->coded = picture->coded_buf;
        encoder->order = 2 * picture->CurrPic.TopFieldOrderCnt;
        encoder->idr = picture->pic_fields.bits.idr_pic_flag;
        encoder->initial_qp = picture->pic_init_qp;
    }
}

static void take_slice(struct encoder *encoder, const void *data) {
    const VAEncSliceParameterBufferHEVC *hevc = data;
    const VAEncSliceParameterBufferH264 *h264 = data;
    encoder->intra = is_hevc(encoder) ? hevc->slice_type == 2 : h264->slice_type % 5 == 2;
    encoder->wanted.qp = encoder->initial_qp + (is_hevc(encoder) ? hevc->slice_qp_delta : h264->slice_qp_delta);
}

VAStatus encoder_render(struct encoder *encoder, const struct buffer *buffer) {
    size_t size = (size_t)buffer->size * buffer->elements, least = 0;
    if (buffer->type == VAEncMiscParameterBufferType) take_misc(&encoder->wanted, (const void *)buffer->data);
    if (!has_units(encoder)) return frames_render(encoder, buffer);
    switch (buffer->type) {
    case VAEncSequenceParameterBufferType:
        least = is_hevc(encoder) ? sizeof(VAEncSequenceParameterBufferHEVC) : sizeof(VAEncSequenceParameterBufferH264);
        if (size < least) return VA_STATUS_ERROR_INVALID_PARAMETER;
        if (is_hevc(encoder)) take_sequence_hevc(&encoder->wanted, (const void *)buffer->data);
        else take_sequence_h264(&encoder->wanted, (const void *)buffer->data);
        break;
    case VAEncPictureParameterBufferType:
        least = is_hevc(encoder) ? sizeof(VAEncPictureParameterBufferHEVC) : sizeof(VAEncPictureParameterBufferH264);
        if (size < least) return VA_STATUS_ERROR_INVALID_PARAMETER;
        take_picture(encoder, buffer->data);
        break;
    case VAEncSliceParameterBufferType:
        least = is_hevc(encoder) ? sizeof(VAEncSliceParameterBufferHEVC) : sizeof(VAEncSliceParameterBufferH264);
        if (size < least) return VA_STATUS_ERROR_INVALID_PARAMETER;
        take_slice(encoder, buffer->data);
        break;
    case VAEncPackedHeaderParameterBufferType: {
        const VAEncPackedHeaderParameterBuffer *header = (const void *)buffer->data;
        encoder->header_type = header->type;
        encoder->header_escaped = header->has_emulation_bytes;
        break;
    }
    case VAEncPackedHeaderDataBufferType: take_header(encoder, buffer); break;
    default: break;
    }
    return VA_STATUS_SUCCESS;
}

/* ---- the encoder inside ---- */

static void set_rate(const struct encoder *encoder, AVCodecContext *av, const struct settings *wanted) {
    switch (encoder->rate_control) {
    case VA_RC_CBR:
    case VA_RC_VBR:
        av->bit_rate = wanted->target;
        av->rc_max_rate = wanted->bits;
        av->rc_buffer_size = (int)(wanted->buffer ? wanted->buffer : wanted->bits);
        break;
    case VA_RC_QVBR:
        av->rc_max_rate = wanted->bits;
        av->rc_buffer_size = (int)(wanted->buffer ? wanted->buffer : wanted->bits);
        av_opt_set_double(av->priv_data, "crf", wanted->quality ? wanted->quality : 23, 0);
        return;
    case VA_RC_ICQ: av_opt_set_double(av->priv_data, "crf", wanted->quality ? wanted->quality : 23, 0); return;
    default: av_opt_set_int(av->priv_data, "qp", wanted->qp > 0 ? wanted->qp : 1, 0); return; /* 0 is another profile */
    }
    if (av->rc_buffer_size && wanted->fullness)
        av->rc_initial_buffer_occupancy =
            (int)(wanted->fullness < av->rc_buffer_size ? wanted->fullness : av->rc_buffer_size);
}

static void set_h264(const struct encoder *encoder, AVCodecContext *av, const struct settings *wanted) {
    char text[256];
    bool baseline = encoder->profile == VAProfileH264ConstrainedBaseline;
    snprintf(text, sizeof text,
             "log=-1:keyint=infinite:scenecut=0:sliced-threads=0:ipratio=1:weightp=0:cabac=%d:8x8dct=%d", !baseline,
             encoder->profile == VAProfileH264High);
    av->pix_fmt = AV_PIX_FMT_NV12;
    av->level = wanted->level;
    av_opt_set(av->priv_data, "x264-params", text, 0);
}

static void set_hevc(const struct encoder *encoder, AVCodecContext *av) {
    av->pix_fmt = encoder->ten_bit ? AV_PIX_FMT_YUV420P10 : AV_PIX_FMT_YUV420P;
    av->gop_size = -1;
    av_opt_set(av->priv_data, "x265-params",
               "log-level=none:pools=none:frame-threads=1:wpp=0:bframes=0:rc-lookahead=0:scenecut=0:keyint=-1:"
               "info=0:repeat-headers=1:ipratio=1:open-gop=0",
               0);
}

static void set_units(const struct encoder *encoder, AVCodecContext *av, const struct settings *wanted) {
    set_rate(encoder, av, wanted);
    av_opt_set(av->priv_data, "preset", encoder->preset, 0);
    av_opt_set(av->priv_data, "tune", "zerolatency", 0);
    if (is_hevc(encoder)) set_hevc(encoder, av);
    else set_h264(encoder, av, wanted);
}

#if LIBAVCODEC_VERSION_MAJOR >= 60
/* libavcodec opens libx265 under a lock (FF_CODEC_CAP_NOT_INIT_THREADSAFE, the lowest bit behind the public AVCodec in
 * codec_internal.h). hevc_qsv asks oneVPL for the parameter sets while it is opened itself, under that same lock: the
 * two would wait for each other for ever. So this copy of libx265's description has no such bit, and a lock here. */
static const AVCodec *without_lock(const AVCodec *codec) {
    static _Alignas(AVCodec) uint8_t copy[sizeof(AVCodec) + 256]; /* the hidden part is less than half of that */
    unsigned capabilities;
    if (!codec) return NULL;
    memcpy(copy, codec, sizeof copy);
    memcpy(&capabilities, copy + sizeof(AVCodec), sizeof capabilities);
    capabilities &= ~1u;
    memcpy(copy + sizeof(AVCodec), &capabilities, sizeof capabilities);
    return (const void *)copy;
}
#else
static const AVCodec *without_lock(const AVCodec *codec) { return codec; } /* this ffmpeg has no oneVPL */
#endif

static const AVCodec *x265;
static void find_x265(void) { x265 = without_lock(avcodec_find_encoder_by_name("libx265")); }

static bool open_locked(AVCodecContext *av, const AVCodec *codec) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    bool opened = avcodec_open2(av, codec, NULL) == 0;
    pthread_mutex_unlock(&lock);
    return opened;
}

static const AVCodec *coder_of(const struct encoder *encoder) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (!has_units(encoder)) return avcodec_find_encoder_by_name(frames_name(encoder->codec));
    if (!is_hevc(encoder)) return avcodec_find_encoder_by_name("libx264");
    pthread_once(&once, find_x265);
    return x265;
}

static AVCodecContext *open_coder(const struct encoder *encoder, int flags) {
    const struct settings *wanted = &encoder->wanted;
    const AVCodec *codec = coder_of(encoder);
    AVCodecContext *av = codec ? avcodec_alloc_context3(codec) : NULL;
    if (!av) return NULL;
    av->flags |= flags;
    av->log_level_offset = 200; /* hardware says nothing */
    av->width = wanted->width, av->height = wanted->height;
    av->framerate = (AVRational){wanted->frame_num, wanted->frame_den};
    av->time_base = av_inv_q(av->framerate);
    av->sample_aspect_ratio = (AVRational){wanted->facts.sar_num, wanted->facts.sar_den};
    av->color_primaries = (enum AVColorPrimaries)wanted->facts.primaries;
    av->color_trc = (enum AVColorTransferCharacteristic)wanted->facts.transfer;
    av->colorspace = (enum AVColorSpace)wanted->facts.matrix;
    av->color_range = wanted->facts.full_range ? AVCOL_RANGE_JPEG : AVCOL_RANGE_MPEG;
    av->thread_count = 1;
    av->max_b_frames = 0;
    if (has_units(encoder)) set_units(encoder, av, wanted);
    else frames_options(encoder, av, wanted);
    if (!open_locked(av, codec)) avcodec_free_context(&av);
    return av;
}

static bool start(struct encoder *encoder) {
    avcodec_free_context(&encoder->av);
    encoder->running = encoder->wanted;
    return (encoder->av = open_coder(encoder, 0)) != NULL;
}

struct settings *encoder_settings(struct encoder *encoder) {
    encoder->reorders = false; /* who asks so hands over the pictures in the order in which they are shown */
    return &encoder->wanted;
}

size_t encoder_parameter_sets(const struct encoder *encoder, uint8_t *to, size_t room) {
    AVCodecContext *av = open_coder(encoder, AV_CODEC_FLAG_GLOBAL_HEADER);
    size_t size = av && av->extradata_size > 0 ? (size_t)av->extradata_size : 0;
    if (size > room) size = 0;
    if (size) memcpy(to, av->extradata, size);
    avcodec_free_context(&av);
    return size;
}

static AVFrame *frame_of(struct encoder *encoder, const struct picture *picture) {
    AVFrame *frame = encoder->planes;
    if (frame && (frame->width != encoder->av->width || frame->height != encoder->av->height))
        av_frame_free(&encoder->planes);
    if (!encoder->planes) {
        if (!(frame = encoder->planes = av_frame_alloc())) return NULL;
        frame->format = encoder->av->pix_fmt, frame->width = encoder->av->width, frame->height = encoder->av->height;
        if (av_frame_get_buffer(frame, 0) < 0) return NULL;
    }
    frame = encoder->planes;
    if (av_frame_make_writable(frame) < 0) return NULL;
    struct picture from = *picture, to = {.width = frame->width, .height = frame->height, .planes = 3};
    /* A surface may be smaller than the coded size by what alignment adds: its memory is as large. */
    from.width = to.width, from.height = to.height;
    bool woven = frame->format == AV_PIX_FMT_NV12;
    to.fourcc = woven ? VA_FOURCC_NV12 : encoder->ten_bit ? VA_FOURCC('I', '0', '1', '0') : VA_FOURCC_I420;
    if (woven) to.planes = 2;
    for (int i = 0; i < to.planes; i++) to.data[i] = frame->data[i], to.stride[i] = frame->linesize[i];
    return picture_convert(&from, &to) ? frame : NULL;
}

static bool write_nal(struct buffer *coded, const uint8_t *nal, size_t size) {
    if (coded->filled + size + 4 > (size_t)coded->size * coded->elements) return false;
    memcpy(coded->data + coded->filled, (const uint8_t[]){0, 0, 0, 1}, 4);
    memcpy(coded->data + coded->filled + 4, nal, size);
    coded->filled += (unsigned)size + 4;
    return true;
}

/* The same, if pictures overtake others, of what tells their order. */
static bool write_ordered(struct encoder *encoder, struct buffer *coded, const uint8_t *nal, size_t size) {
    unsigned type = type_of(encoder, nal);
    if (!encoder->reorders || (type != 7 && type != 5 && type != 1)) return write_nal(coded, nal, size);
    uint8_t *changed = malloc(size * 3 / 2 + 128);
    if (!changed) return false;
    size_t written = type == 7 ? reorder_sequence(&encoder->reorder, nal, size, changed)
                               : reorder_slice(&encoder->reorder, encoder->order, nal, size, changed);
    bool done = write_nal(coded, changed, written);
    free(changed);
    return done;
}

/* The application's own units: either the access unit delimiter, or all others. */
static void write_messages(const struct encoder *encoder, struct buffer *coded, bool delimiter) {
    const uint8_t *at = encoder->messages, *nal;
    size_t size;
    while ((nal = next_nal(&at, encoder->messages + encoder->messages_size, &size)))
        if ((type_of(encoder, nal) == (is_hevc(encoder) ? 35 : 9)) == delimiter) write_nal(coded, nal, size);
}

static void write_frame(const struct encoder *encoder, struct buffer *coded) {
    size_t size = (size_t)encoder->packet->size, room = (size_t)coded->size * coded->elements;
    coded->filled = (unsigned)(size < room ? size : room);
    memcpy(coded->data, encoder->packet->data, coded->filled);
}

/* The encoder's own SEI messages name it; the application's come before the first slice. */
static void write_units(struct encoder *encoder, struct buffer *coded) {
    const uint8_t *at = encoder->packet->data, *end = at + encoder->packet->size, *nal;
    size_t size;
    bool sliced = false;
    coded->filled = 0;
    write_messages(encoder, coded, true);
    while ((nal = next_nal(&at, end, &size))) {
        unsigned type = type_of(encoder, nal);
        if (type == (is_hevc(encoder) ? 39 : 6)) continue;
        if (!sliced && type < (is_hevc(encoder) ? 32 : 6)) {
            write_messages(encoder, coded, false);
            sliced = true;
        }
        if (!write_ordered(encoder, coded, nal, size)) break;
    }
}

static bool differs(const struct encoder *encoder) {
    struct settings a = encoder->wanted, b = encoder->running;
    if (encoder->rate_control != VA_RC_CQP) a.qp = b.qp;
    return memcmp(&a, &b, sizeof a) != 0;
}

static void look_at_headers(struct encoder *encoder) {
    struct facts *facts = &encoder->wanted.facts;
    if (!encoder->sequence_size) return;
    if (is_hevc(encoder)) facts_hevc(facts, encoder->sequence, encoder->sequence_size);
    else facts_h264(facts, encoder->sequence, encoder->sequence_size);
    encoder->sequence_size = 0;
}

VAStatus encoder_picture(struct encoder *encoder, const struct picture *input, enum coding coding, enum fate fate,
                         struct buffer *coded) {
    bool key = coding == CODE_IDR;
    /* libx264 makes an IDR of each I picture that libavcodec asks for. A P is nearer to what hardware does: nobody can
     * start there. */
    if (coding == CODE_INTRA && !is_hevc(encoder)) coding = CODE_INTER;
    if ((!encoder->av || (key && differs(encoder))) && !start(encoder)) return VA_STATUS_ERROR_ENCODING_ERROR;
    AVFrame *frame = frame_of(encoder, input);
    if (!frame) return VA_STATUS_ERROR_ENCODING_ERROR;
    if (fate == FATE_GREEN)
        for (int i = 0; i < 3 && frame->data[i]; i++)
            memset(frame->data[i], 0,
                   (size_t)frame->linesize[i] * (size_t)(i ? (frame->height + 1) / 2 : frame->height));
    frame->pict_type = coding == CODE_INTER ? AV_PICTURE_TYPE_P : AV_PICTURE_TYPE_I;
    if (has_units(encoder)) av_opt_set_int(encoder->av->priv_data, "forced-idr", key, 0);
    frame->pts = encoder->count++;
    int result = avcodec_send_frame(encoder->av, frame);
    if (result >= 0) result = avcodec_receive_packet(encoder->av, encoder->packet);
    if (result < 0) return VA_STATUS_ERROR_ENCODING_ERROR;
    if (has_units(encoder)) write_units(encoder, coded);
    else write_frame(encoder, coded);
    if (fate == FATE_TRUNCATE) coded->filled = coded->filled / 4 + 1;
    if (fate == FATE_DROP) coded->filled = 0;
    encoder->messages_size = 0;
    av_packet_unref(encoder->packet);
    return VA_STATUS_SUCCESS;
}

VAStatus encoder_end(struct device *device, struct encoder *encoder, struct surface *input, enum fate fate,
                     int64_t ready) {
    struct buffer *coded = objects_get(device, KIND_BUFFER, encoder->coded);
    if (!coded || coded->type != VAEncCodedBufferType) return VA_STATUS_ERROR_INVALID_BUFFER;
    look_at_headers(encoder);
    if (is_hevc(encoder) && encoder->wanted.facts.width > 0)
        encoder->wanted.width = encoder->wanted.facts.width, encoder->wanted.height = encoder->wanted.facts.height;
    coded->ready = ready;
    enum coding coding = encoder->idr || encoder->intra ? CODE_IDR : CODE_INTER;
    return encoder_picture(encoder, &input->picture, coding, fate, coded);
}
