/* Decoding: libavcodec takes the stream as it is, packet by packet, and gives pictures in the order they are shown. So
 * it is bit for bit what software decodes; the device's engines take the time that the configuration says. */
#include <libavcodec/avcodec.h>
#include <stdlib.h>
#include <string.h>

#include "vpl.h"

enum { SURFACES = 16 }; /* as many as a stream may refer to */

struct reader {
    AVCodecContext *av;
    AVCodecContext *parsing; /* the parser's own: it writes into what it is given */
    AVCodecParserContext *parser;
    AVPacket *packet;
    AVFrame *frame;
    int width, height, format; /* of the stream as it began */
    bool draining;
};

static const char *name_of(mfxU32 codec) {
    return codec == MFX_CODEC_AVC ? "h264" : codec == MFX_CODEC_HEVC ? "hevc" : "";
}

static AVCodecContext *open_decoder(mfxU32 id) {
    const AVCodec *codec = avcodec_find_decoder_by_name(name_of(id));
    AVCodecContext *av = codec ? avcodec_alloc_context3(codec) : NULL;
    if (!av) return NULL;
    av->thread_count = 1;
    av->log_level_offset = 200; /* hardware says nothing */
    if (avcodec_open2(av, codec, NULL) < 0) avcodec_free_context(&av);
    return av;
}

static uint32_t format_of(int format) { /* in VA-API's words, of libavcodec's pictures */
    return format == AV_PIX_FMT_YUV420P || format == AV_PIX_FMT_YUVJ420P ? VA_FOURCC_I420
           : format == AV_PIX_FMT_YUV420P10                              ? VA_FOURCC('I', '0', '1', '0')
                                                                         : 0;
}

static mfxU16 structure_of(const AVFrame *frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(58, 7, 100)
    bool interlaced = frame->flags & AV_FRAME_FLAG_INTERLACED, top = frame->flags & AV_FRAME_FLAG_TOP_FIELD_FIRST;
#else
    bool interlaced = frame->interlaced_frame, top = frame->top_field_first;
#endif
    return !interlaced ? MFX_PICSTRUCT_PROGRESSIVE : top ? MFX_PICSTRUCT_FIELD_TFF : MFX_PICSTRUCT_FIELD_BFF;
}

static bool give_packet(AVCodecContext *av, AVPacket *packet, const mfxBitstream *from, int *result) {
    if (av_new_packet(packet, (int)from->DataLength) < 0) return false;
    memcpy(packet->data, from->Data + from->DataOffset, from->DataLength);
    packet->pts = from->TimeStamp == (mfxU64)MFX_TIMESTAMP_UNKNOWN ? AV_NOPTS_VALUE : (int64_t)from->TimeStamp;
    *result = avcodec_send_packet(av, packet);
    av_packet_unref(packet);
    return true;
}

/* ---- what the stream is ---- */

static mfxStatus describe(const AVCodecContext *av, mfxU16 structure, mfxVideoParam *param) {
    mfxFrameInfo *info = &param->mfx.FrameInfo;
    uint32_t format = format_of(av->pix_fmt);
    bool ten = format && format != VA_FOURCC_I420;
    if (!format || (ten && param->mfx.CodecId == MFX_CODEC_AVC)) return MFX_ERR_UNSUPPORTED;
    int lines = structure == MFX_PICSTRUCT_PROGRESSIVE ? 16 : 32;
    param->mfx.CodecProfile = (mfxU16)av->profile, param->mfx.CodecLevel = (mfxU16)av->level;
    *info = (mfxFrameInfo){
        .BitDepthLuma = ten ? 10 : 8,
        .BitDepthChroma = ten ? 10 : 8,
        .Shift = ten,
        .FourCC = ten ? MFX_FOURCC_P010 : MFX_FOURCC_NV12,
        .ChromaFormat = MFX_CHROMAFORMAT_YUV420,
        .Width = (mfxU16)((av->coded_width + 15) / 16 * 16),
        .Height = (mfxU16)((av->coded_height + lines - 1) / lines * lines),
        .CropW = (mfxU16)av->width,
        .CropH = (mfxU16)av->height,
        .FrameRateExtN = (mfxU32)av->framerate.num,
        .FrameRateExtD = (mfxU32)av->framerate.den,
        .AspectRatioW = (mfxU16)av->sample_aspect_ratio.num,
        .AspectRatioH = (mfxU16)av->sample_aspect_ratio.den,
        .PicStruct = structure,
    };
    mfxExtVideoSignalInfo *signal = find_buffer(param, MFX_EXTBUFF_VIDEO_SIGNAL_INFO);
    if (!signal) return MFX_ERR_NONE;
    signal->VideoFullRange = av->color_range == AVCOL_RANGE_JPEG;
    signal->ColourPrimaries = (mfxU16)av->color_primaries;
    signal->TransferCharacteristics = (mfxU16)av->color_trc;
    signal->MatrixCoefficients = (mfxU16)av->colorspace;
    signal->ColourDescriptionPresent = av->color_primaries != AVCOL_PRI_UNSPECIFIED ||
                                       av->color_trc != AVCOL_TRC_UNSPECIFIED ||
                                       av->colorspace != AVCOL_SPC_UNSPECIFIED;
    return MFX_ERR_NONE;
}

/* The first picture is decoded, since it tells more than the parameter sets do. */
EXPORT mfxStatus MFXVideoDECODE_DecodeHeader(mfxSession session, mfxBitstream *from, mfxVideoParam *param) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    AVCodecContext *av = open_decoder(param->mfx.CodecId);
    AVPacket *packet = av_packet_alloc();
    AVFrame *frame = av_frame_alloc();
    mfxStatus status = av && packet && frame ? MFX_ERR_MORE_DATA : MFX_ERR_UNSUPPORTED;
    int result;
    if (status == MFX_ERR_MORE_DATA && give_packet(av, packet, from, &result) && av->width > 0) {
        avcodec_send_packet(av, NULL);
        bool shown = avcodec_receive_frame(av, frame) == 0;
        status = describe(av, shown ? structure_of(frame) : MFX_PICSTRUCT_PROGRESSIVE, param);
    }
    avcodec_free_context(&av);
    av_packet_free(&packet);
    av_frame_free(&frame);
    return status;
}

static VAProfile profile_of(const mfxInfoMFX *mfx) {
    return mfx->CodecId == MFX_CODEC_AVC              ? VAProfileH264High
           : mfx->FrameInfo.FourCC == MFX_FOURCC_P010 ? VAProfileHEVCMain10
                                                      : VAProfileHEVCMain;
}

static bool offers(const struct personality *is, const mfxInfoMFX *mfx) {
    const mfxFrameInfo *info = &mfx->FrameInfo;
    enum codec codec = mfx->CodecId == MFX_CODEC_AVC    ? CODEC_H264
                       : mfx->CodecId == MFX_CODEC_HEVC ? CODEC_HEVC
                                                        : CODEC_NONE;
    return is->decode >> codec & 1 && (is->ten_bit || info->FourCC != MFX_FOURCC_P010) &&
           info->CropW <= is->max_width && info->CropH <= is->max_height;
}

EXPORT mfxStatus MFXVideoDECODE_QueryIOSurf(mfxSession session, mfxVideoParam *param, mfxFrameAllocRequest *request) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    struct personality is = device_personality(session->device);
    if (!offers(&is, &param->mfx)) return MFX_ERR_UNSUPPORTED;
    *request = (mfxFrameAllocRequest){.Info = param->mfx.FrameInfo};
    request->NumFrameMin = SURFACES, request->NumFrameSuggested = (mfxU16)(SURFACES + param->AsyncDepth);
    request->Type = MFX_MEMTYPE_FROM_DECODE | MFX_MEMTYPE_EXTERNAL_FRAME |
                    (param->IOPattern & MFX_IOPATTERN_OUT_VIDEO_MEMORY ? MFX_MEMTYPE_VIDEO_MEMORY_DECODER_TARGET
                                                                       : MFX_MEMTYPE_SYSTEM_MEMORY);
    return MFX_ERR_NONE;
}

/* ---- opening and closing ---- */

static struct reader *reader_open(const mfxVideoParam *param) {
    struct reader *reader = calloc(1, sizeof *reader);
    if (!reader) return NULL;
    reader->av = open_decoder(param->mfx.CodecId);
    reader->parsing = avcodec_alloc_context3(NULL);
    reader->packet = av_packet_alloc();
    reader->frame = av_frame_alloc();
    if (reader->av) reader->parser = av_parser_init((int)reader->av->codec_id);
    if (!reader->parser) return reader;
    reader->parser->flags |= PARSER_FLAG_COMPLETE_FRAMES;
    reader->av->pkt_timebase = (AVRational){1, 90000};
    return reader;
}

EXPORT mfxStatus MFXVideoDECODE_Init(mfxSession session, mfxVideoParam *param) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    struct personality is = device_personality(session->device);
    if (!offers(&is, &param->mfx)) return MFX_ERR_UNSUPPORTED;
    mfxStatus status = component_open(session, &session->decode, param, profile_of(&param->mfx), VAEntrypointVLD, 0);
    if (status) return status;
    struct reader *reader = session->reader = reader_open(param);
    if (reader && reader->parser && reader->parsing && reader->packet && reader->frame) return MFX_ERR_NONE;
    decode_close(session);
    return MFX_ERR_MEMORY_ALLOC;
}

void decode_close(mfxSession session) {
    struct reader *reader = session->reader;
    component_close(session, &session->decode);
    session->reader = NULL;
    if (!reader) return;
    if (reader->parser) av_parser_close(reader->parser);
    avcodec_free_context(&reader->av);
    avcodec_free_context(&reader->parsing);
    av_packet_free(&reader->packet);
    av_frame_free(&reader->frame);
    free(reader);
}

EXPORT mfxStatus MFXVideoDECODE_Close(mfxSession session) {
    if (!session) return MFX_ERR_INVALID_HANDLE;
    if (!session->decode.context) return MFX_ERR_NOT_INITIALIZED; /* ffmpeg closes before it opens, too */
    decode_close(session);
    return MFX_ERR_NONE;
}

/* ---- pictures ---- */

/* True when the packet begins another stream, for which the application must open another decoder. */
static bool is_another(struct reader *reader, const mfxBitstream *from) {
    AVCodecParserContext *parser = reader->parser;
    uint8_t *data, *copy = av_mallocz(from->DataLength + AV_INPUT_BUFFER_PADDING_SIZE);
    int size;
    if (!copy) return false;
    memcpy(copy, from->Data + from->DataOffset, from->DataLength);
    av_parser_parse2(parser, reader->parsing, &data, &size, copy, (int)from->DataLength, 0, 0, 0);
    av_free(copy);
    if (parser->coded_width <= 0) return false;
    if (!reader->width)
        reader->width = parser->coded_width, reader->height = parser->coded_height, reader->format = parser->format;
    return reader->width != parser->coded_width || reader->height != parser->coded_height ||
           reader->format != parser->format;
}

static void tell(const AVFrame *frame, mfxFrameSurface1 *to) {
    to->Data.TimeStamp = frame->pts == AV_NOPTS_VALUE ? (mfxU64)MFX_TIMESTAMP_UNKNOWN : (mfxU64)frame->pts;
    to->Info.PicStruct = structure_of(frame);
    for (int i = 0; i < to->Data.NumExtParam; i++) {
        mfxExtDecodedFrameInfo *info = (void *)to->Data.ExtParam[i];
        if (info->Header.BufferId != MFX_EXTBUFF_DECODED_FRAME_INFO) continue;
        info->FrameType = frame->pict_type == AV_PICTURE_TYPE_I   ? MFX_FRAMETYPE_I
                          : frame->pict_type == AV_PICTURE_TYPE_B ? MFX_FRAMETYPE_B
                                                                  : MFX_FRAMETYPE_P;
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(58, 7, 100)
        if (frame->flags & AV_FRAME_FLAG_KEY) info->FrameType |= MFX_FRAMETYPE_IDR;
#else
        if (frame->key_frame) info->FrameType |= MFX_FRAMETYPE_IDR;
#endif
    }
}

static mfxStatus show(mfxSession session, mfxFrameSurface1 *to, mfxSyncPoint *point) {
    const AVFrame *frame = session->reader->frame;
    struct component *component = &session->decode;
    struct picture from = {.fourcc = format_of(frame->format), .planes = 3}, picture;
    struct surface *surface;
    enum fate fate = FATE_FINE;
    mfxStatus status = session_fault(session, "decode", NULL, &fate);
    if (!status) status = session_picture(session, to, &picture, &surface);
    if (status) return status;
    from.width = picture.width = frame->width < picture.width ? frame->width : picture.width;
    from.height = picture.height = frame->height < picture.height ? frame->height : picture.height;
    for (int i = 0; i < 3; i++) from.data[i] = frame->data[i], from.stride[i] = frame->linesize[i];
    if (!picture_convert(&from, &picture)) return MFX_ERR_DEVICE_FAILED;
    if (fate == FATE_GREEN) picture_blank(&picture);
    int64_t ready = clock_book(session->device, &component->context->line, WORK_DECODE,
                               (int64_t)component->context->width * component->context->height, 0);
    if (surface) surface->ready = ready;
    tell(frame, to);
    *point = session_point(session, ready, "decode", NULL);
    return MFX_ERR_NONE;
}

/* A damaged packet is taken and shown as far as it goes, as hardware does it. */
static mfxStatus feed(mfxSession session, mfxBitstream *from) {
    struct reader *reader = session->reader;
    int result = 0;
    if (!from) {
        if (!reader->draining) avcodec_send_packet(reader->av, NULL);
        reader->draining = true;
        return MFX_ERR_NONE;
    }
    enum fate fate = FATE_FINE;
    mfxStatus status = session_fault(session, "vpl.decode", NULL, &fate);
    if (status) return status;
    if (!from->DataLength) return MFX_ERR_NONE;
    if (is_another(reader, from)) return MFX_ERR_INCOMPATIBLE_VIDEO_PARAM;
    if (reader->draining) avcodec_flush_buffers(reader->av);
    reader->draining = false;
    if (!give_packet(reader->av, reader->packet, from, &result)) return MFX_ERR_MEMORY_ALLOC;
    if (result != AVERROR(EAGAIN)) from->DataOffset += from->DataLength, from->DataLength = 0;
    return MFX_ERR_NONE;
}

EXPORT mfxStatus MFXVideoDECODE_DecodeFrameAsync(mfxSession session, mfxBitstream *from, mfxFrameSurface1 *work,
                                                 mfxFrameSurface1 **to, mfxSyncPoint *point) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    if (!session->decode.context) return MFX_ERR_NOT_INITIALIZED;
    *point = NULL;
    mfxStatus status = feed(session, from);
    if (status) return status;
    if (avcodec_receive_frame(session->reader->av, session->reader->frame) < 0) return MFX_ERR_MORE_DATA;
    status = show(session, work, point);
    av_frame_unref(session->reader->frame);
    *to = work; /* ffmpeg looks for it among those it gave */
    return status;
}
