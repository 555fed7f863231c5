/* Decoding: the slices of a picture, with parameter sets rebuilt from what VA-API says of them, go through libavcodec;
 * VP9's frames are whole.
 * The picture is taken from libavcodec's buffer and not from its output: the buffer it asked for last is that of the
 * picture being decoded now, and it is whole when the packet was taken. So reordering does not matter. */
#include <stdlib.h>
#include <string.h>

#include "decode.h"

static int get_buffer(AVCodecContext *av, AVFrame *frame, int flags) {
    struct decoder *decoder = av->opaque;
    int result = avcodec_default_get_buffer2(av, frame, flags);
    if (result >= 0) {
        av_frame_unref(decoder->current);
        result = av_frame_ref(decoder->current, frame);
    }
    return result;
}

struct decoder *decoder_open(const struct context *context) {
    struct decoder *decoder = calloc(1, sizeof *decoder);
    if (!decoder) return NULL;
    static const char *const names[CODECS] = {[CODEC_H264] = "h264", [CODEC_HEVC] = "hevc", [CODEC_VP9] = "vp9"};
    decoder->codec = codec_of(context->config.profile);
    const AVCodec *codec = names[decoder->codec] ? avcodec_find_decoder_by_name(names[decoder->codec]) : NULL;
    decoder->av = codec ? avcodec_alloc_context3(codec) : NULL;
    decoder->current = av_frame_alloc();
    decoder->output = av_frame_alloc();
    decoder->packet = av_packet_alloc();
    if (decoder->av && decoder->current && decoder->output && decoder->packet) {
        decoder->av->opaque = decoder;
        decoder->av->get_buffer2 = get_buffer;
        decoder->av->thread_count = 1;
        decoder->av->log_level_offset = 200; /* hardware says nothing */
        if (avcodec_open2(decoder->av, codec, NULL) == 0) return decoder;
    }
    decoder_close(decoder);
    return NULL;
}

void decoder_close(struct decoder *decoder) {
    if (!decoder) return;
    avcodec_free_context(&decoder->av);
    av_frame_free(&decoder->current);
    av_frame_free(&decoder->output);
    av_packet_free(&decoder->packet);
    free(decoder->parameters.data);
    free(decoder->stream);
    free(decoder);
}

static bool append(struct decoder *decoder, const uint8_t *data, size_t size) {
    if (decoder->slice_count == MAX_SLICES) return false;
    if (decoder->used + size > decoder->room) {
        size_t larger = (decoder->used + size) * 2;
        uint8_t *grown = realloc(decoder->stream, larger);
        if (!grown) return false;
        decoder->stream = grown, decoder->room = larger;
    }
    memcpy(decoder->stream + decoder->used, data, size);
    decoder->slices[decoder->slice_count++] = (struct slice){.offset = decoder->used, .size = size};
    decoder->used += size;
    return true;
}

static VAStatus take_slices(struct decoder *decoder, const struct buffer *data) {
    struct buffer *parameters = &decoder->parameters;
    for (unsigned i = 0; i < parameters->elements; i++) {
        /* All slice parameters begin alike: size, offset, flag. */
        const VASliceParameterBufferBase *base = (const void *)(parameters->data + (size_t)i * parameters->size);
        if ((uint64_t)base->slice_data_offset + base->slice_data_size > (uint64_t)data->size * data->elements ||
            base->slice_data_size < (decoder->codec == CODEC_VP9 ? 1u : 3u))
            return VA_STATUS_ERROR_INVALID_PARAMETER;
        if (!append(decoder, data->data + base->slice_data_offset, base->slice_data_size))
            return VA_STATUS_ERROR_ALLOCATION_FAILED;
        struct slice *slice = &decoder->slices[decoder->slice_count - 1];
        if (decoder->codec == CODEC_HEVC) {
            memcpy(&slice->hevc, base, parameters->size < sizeof slice->hevc ? parameters->size : sizeof slice->hevc);
        } else if (decoder->codec == CODEC_H264 && parameters->size >= sizeof(VASliceParameterBufferH264)) {
            const VASliceParameterBufferH264 *h264 = (const void *)base;
            slice->counts[0] = h264->num_ref_idx_l0_active_minus1;
            slice->counts[1] = h264->num_ref_idx_l1_active_minus1;
        }
    }
    parameters->elements = 0;
    return VA_STATUS_SUCCESS;
}

static void copy(void *to, size_t size, const struct buffer *from) {
    size_t given = (size_t)from->size * from->elements;
    memcpy(to, from->data, given < size ? given : size);
}

VAStatus decoder_render(struct decoder *decoder, const struct buffer *buffer) {
    size_t size = (size_t)buffer->size * buffer->elements;
    switch (buffer->type) {
    case VAPictureParameterBufferType:
        copy(&decoder->picture, sizeof decoder->picture, buffer);
        decoder->used = 0, decoder->slice_count = 0, decoder->has_matrix = false, decoder->parameters.elements = 0;
        return VA_STATUS_SUCCESS;
    case VAIQMatrixBufferType:
        copy(&decoder->matrix, sizeof decoder->matrix, buffer);
        decoder->has_matrix = true;
        return VA_STATUS_SUCCESS;
    case VASliceParameterBufferType:
        free(decoder->parameters.data);
        decoder->parameters =
            (struct buffer){.size = buffer->size, .elements = buffer->elements, .data = malloc(size + 1)};
        if (!decoder->parameters.data) return VA_STATUS_ERROR_ALLOCATION_FAILED;
        memcpy(decoder->parameters.data, buffer->data, size);
        return VA_STATUS_SUCCESS;
    case VASliceDataBufferType: return take_slices(decoder, buffer);
    default: return VA_STATUS_SUCCESS;
    }
}

size_t finish_nal(struct bits *bits, uint8_t *to) {
    put_bits(bits, 1, 1);
    while (bits->position % 8) put_bits(bits, 1, 0);
    memcpy(to, (const uint8_t[]){0, 0, 0, 1}, 4);
    return 4 + escape(bits->data, bits->position / 8, to + 4);
}

static bool show(const AVFrame *frame, struct surface *target) {
    uint32_t fourcc = frame->format == AV_PIX_FMT_YUV420P || frame->format == AV_PIX_FMT_YUVJ420P ? VA_FOURCC_I420
                      : frame->format == AV_PIX_FMT_YUV420P10 ? VA_FOURCC('I', '0', '1', '0')
                                                              : 0;
    if (!fourcc) return false;
    struct picture from = {.fourcc = fourcc, .planes = 3}, to = target->picture;
    from.width = to.width = frame->width < to.width ? frame->width : to.width;
    from.height = to.height = frame->height < to.height ? frame->height : to.height;
    for (int i = 0; i < 3; i++) from.data[i] = frame->data[i], from.stride[i] = frame->linesize[i];
    return picture_convert(&from, &to);
}

static size_t assemble(const struct decoder *decoder, uint8_t *to, size_t room) {
    if (decoder->codec == CODEC_HEVC) return hevc_assemble(decoder, to, room);
    if (decoder->codec == CODEC_H264) return h264_assemble(decoder, to, room);
    if (decoder->used > room) return 0;
    memcpy(to, decoder->stream, decoder->used);
    return decoder->used;
}

VAStatus decoder_end(struct decoder *decoder, struct surface *target) {
    if (!decoder->slice_count) return VA_STATUS_ERROR_DECODING_ERROR;
    size_t room = decoder->used * 2 + (size_t)decoder->slice_count * 2048 + 65536, size = 0;
    uint8_t *stream = av_mallocz(room + AV_INPUT_BUFFER_PADDING_SIZE);
    if (!stream) return VA_STATUS_ERROR_ALLOCATION_FAILED;
    size = assemble(decoder, stream, room);
    decoder->slice_count = 0, decoder->used = 0;
    int result = size ? av_packet_from_data(decoder->packet, stream, (int)size) : -1;
    if (result < 0) av_free(stream);
    else result = avcodec_send_packet(decoder->av, decoder->packet);
    av_packet_unref(decoder->packet);
    while (avcodec_receive_frame(decoder->av, decoder->output) == 0) av_frame_unref(decoder->output);
    /* What is damaged is shown as far as it goes, as hardware does it. */
    if (!decoder->current->data[0]) return result < 0 ? VA_STATUS_ERROR_DECODING_ERROR : VA_STATUS_SUCCESS;
    return show(decoder->current, target) ? VA_STATUS_SUCCESS : VA_STATUS_ERROR_DECODING_ERROR;
}
