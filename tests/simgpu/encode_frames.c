/* VP9 and AV1: what VA-API says of a picture, and how libvpx and libaom are to code it.
 *
 * Their own headers are in the stream: of AV1's, the application's only say what the colours are. */
#include <libavutil/opt.h>
#include <string.h>

#include "coder.h"

const char *frames_name(enum codec codec) { return codec == CODEC_VP9 ? "libvpx-vp9" : "libaom-av1"; }

static void take_picture_vp9(struct encoder *encoder, const VAEncPictureParameterBufferVP9 *picture) {
    encoder->coded = picture->coded_buf;
    encoder->idr = picture->pic_flags.bits.frame_type == 0 || picture->ref_flags.bits.force_kf;
    encoder->intra = picture->pic_flags.bits.intra_only;
    encoder->wanted.width = (int)picture->frame_width_dst;
    encoder->wanted.height = (int)picture->frame_height_dst;
    encoder->wanted.qp = picture->luma_ac_qindex;
}

static void take_picture_av1(struct encoder *encoder, const VAEncPictureParameterBufferAV1 *picture) {
    encoder->coded = picture->coded_buf;
    encoder->idr = picture->picture_flags.bits.frame_type == 0;
    encoder->intra = picture->picture_flags.bits.frame_type == 2;
    encoder->wanted.width = picture->frame_width_minus_1 + 1;
    encoder->wanted.height = picture->frame_height_minus_1 + 1;
    encoder->wanted.qp = picture->base_qindex;
}

static VAStatus take_sequence(struct encoder *encoder, const struct buffer *buffer) {
    bool vp9 = encoder->codec == CODEC_VP9;
    const VAEncSequenceParameterBufferVP9 *sequence_vp9 = (const void *)buffer->data;
    const VAEncSequenceParameterBufferAV1 *sequence_av1 = (const void *)buffer->data;
    if (buffer->size < (vp9 ? sizeof *sequence_vp9 : sizeof *sequence_av1)) return VA_STATUS_ERROR_INVALID_PARAMETER;
    uint32_t bits = vp9 ? sequence_vp9->bits_per_second : sequence_av1->bits_per_second;
    if (bits && !encoder->wanted.bits) encoder->wanted.bits = encoder->wanted.target = bits;
    return VA_STATUS_SUCCESS;
}

static void take_header(struct encoder *encoder, const struct buffer *buffer) {
    if (buffer->type == VAEncPackedHeaderParameterBufferType)
        encoder->header_type = ((const VAEncPackedHeaderParameterBuffer *)(const void *)buffer->data)->type;
    else if (encoder->header_type == VAEncPackedHeaderSequence)
        facts_av1(&encoder->wanted.facts, buffer->data, (size_t)buffer->size * buffer->elements);
}

VAStatus frames_render(struct encoder *encoder, const struct buffer *buffer) {
    bool vp9 = encoder->codec == CODEC_VP9;
    if (buffer->type == VAEncSequenceParameterBufferType) return take_sequence(encoder, buffer);
    if (buffer->type == VAEncPackedHeaderParameterBufferType || buffer->type == VAEncPackedHeaderDataBufferType)
        take_header(encoder, buffer);
    if (buffer->type != VAEncPictureParameterBufferType) return VA_STATUS_SUCCESS;
    if (buffer->size < (vp9 ? sizeof(VAEncPictureParameterBufferVP9) : sizeof(VAEncPictureParameterBufferAV1)))
        return VA_STATUS_ERROR_INVALID_PARAMETER;
    if (vp9) take_picture_vp9(encoder, (const void *)buffer->data);
    else take_picture_av1(encoder, (const void *)buffer->data);
    return VA_STATUS_SUCCESS;
}

/* Both codecs' indices, 0 to 255, are 0 to 63 to their encoders, evenly but for the last few. */
static int quantizer_of(int index) { return index >= 252 ? 63 : index > 248 ? 62 : (index + 2) / 4; }

static void set_rate(const struct encoder *encoder, AVCodecContext *av, const struct settings *wanted) {
    int quality = wanted->quality ? wanted->quality * 63 / 51 : 32; /* VA-API's is 1 to 51, whatever the codec */
    switch (encoder->rate_control) {
    case VA_RC_CBR:
    case VA_RC_VBR: /* what their one-pass VBR makes of a short clip is far from what was asked for */
        av->bit_rate = av->rc_min_rate = av->rc_max_rate = wanted->target;
        av->rc_buffer_size = (int)(wanted->buffer ? wanted->buffer : wanted->bits);
        break;
    case VA_RC_QVBR:
        av->bit_rate = wanted->bits;
        av_opt_set_int(av->priv_data, "crf", quality, 0);
        break;
    case VA_RC_ICQ: av_opt_set_int(av->priv_data, "crf", quality, 0); break;
    default: av->qmin = av->qmax = quantizer_of(wanted->qp); av_opt_set_int(av->priv_data, "crf", av->qmin, 0);
    }
}

void frames_options(const struct encoder *encoder, AVCodecContext *av, const struct settings *wanted) {
    enum { NEVER = 1 << 20 };
    av->pix_fmt = encoder->ten_bit ? AV_PIX_FMT_YUV420P10 : AV_PIX_FMT_YUV420P;
    if (encoder->codec == CODEC_VP9) av->profile = encoder->ten_bit ? 2 : 0;
    av->bit_rate = 0; /* libavcodec's own is 200 kbit/s */
    av->gop_size = av->keyint_min = NEVER;
    set_rate(encoder, av, wanted);
    av_opt_set(av->priv_data, encoder->codec == CODEC_VP9 ? "deadline" : "usage", "realtime", 0);
    av_opt_set_int(av->priv_data, "cpu-used", 8, 0);
    av_opt_set_int(av->priv_data, "lag-in-frames", 0, 0); /* a picture in, a picture out */
    av_opt_set_int(av->priv_data, "auto-alt-ref", 0, 0);
}
