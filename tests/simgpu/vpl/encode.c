/* Encoding: what oneVPL asks for, in the words of the driver's own encoder. */
#include <stdlib.h>
#include <string.h>

#include "../encode.h"
#include "vpl.h"

enum { DEFAULT_GOP = 256, PARAMETER_SETS = 2048 };

struct coder {
    uint8_t sets[PARAMETER_SETS]; /* as they will be in the stream */
    size_t sets_size;
    uint64_t count;     /* pictures */
    unsigned since_key; /* pictures since the last I picture, and I pictures since the last IDR */
    unsigned since_idr;
};

/* ---- what is possible ---- */

static uint32_t rate_control_of(mfxU16 method) {
    switch (method) {
    case MFX_RATECONTROL_CBR: return VA_RC_CBR;
    case MFX_RATECONTROL_VBR: return VA_RC_VBR;
    case MFX_RATECONTROL_CQP: return VA_RC_CQP;
    case MFX_RATECONTROL_ICQ: return VA_RC_ICQ;
    case MFX_RATECONTROL_QVBR: return VA_RC_QVBR;
    default: return 0;
    }
}

static VAProfile profile_of(const mfxInfoMFX *mfx) {
    bool ten = mfx->FrameInfo.FourCC == MFX_FOURCC_P010;
    if (mfx->CodecId == MFX_CODEC_HEVC) return ten ? VAProfileHEVCMain10 : VAProfileHEVCMain;
    switch (mfx->CodecProfile & 0xff) { /* above are constraints */
    case MFX_PROFILE_AVC_BASELINE: return VAProfileH264ConstrainedBaseline;
    case MFX_PROFILE_AVC_MAIN: return VAProfileH264Main;
    default: return VAProfileH264High;
    }
}

static bool is_profile(const mfxInfoMFX *mfx) {
    mfxU16 profile = mfx->CodecProfile & 0xff;
    bool ten = mfx->FrameInfo.FourCC == MFX_FOURCC_P010;
    if (!profile) return true;
    if (mfx->CodecId == MFX_CODEC_HEVC)
        return profile == MFX_PROFILE_HEVC_MAIN10 || (profile == MFX_PROFILE_HEVC_MAIN && !ten);
    return profile == MFX_PROFILE_AVC_BASELINE || profile == MFX_PROFILE_AVC_MAIN || profile == MFX_PROFILE_AVC_HIGH;
}

static VAEntrypoint entrypoint_of(const struct personality *is, mfxU16 low_power) {
    bool slice = is->entry_slice && low_power != MFX_CODINGOPTION_ON;
    return slice || !is->entry_lp || low_power == MFX_CODINGOPTION_OFF ? VAEntrypointEncSlice : VAEntrypointEncSliceLP;
}

/* Zeroes what is refused, which is how the application learns it; changes what is another way here. */
static mfxStatus check(mfxSession session, mfxVideoParam *param) {
    struct personality is = device_personality(session->device);
    mfxInfoMFX *mfx = &param->mfx;
    mfxFrameInfo *info = &mfx->FrameInfo;
    bool avc = mfx->CodecId == MFX_CODEC_AVC, hevc = mfx->CodecId == MFX_CODEC_HEVC, refused = false;
#define REFUSE(field, when)                                                                                            \
    if (when) field = 0, refused = true
    REFUSE(mfx->CodecId, !(avc && is.encode >> CODEC_H264 & 1) && !(hevc && is.encode >> CODEC_HEVC & 1));
    REFUSE(info->FourCC, info->FourCC != MFX_FOURCC_NV12 && !(info->FourCC == MFX_FOURCC_P010 && hevc && is.ten_bit));
    REFUSE(mfx->CodecProfile, !is_profile(mfx));
    REFUSE(mfx->RateControlMethod, !(rate_control_of(mfx->RateControlMethod) & is.rate_control));
    REFUSE(mfx->LowPower, mfx->LowPower == MFX_CODINGOPTION_ON    ? !is.entry_lp
                          : mfx->LowPower == MFX_CODINGOPTION_OFF ? !is.entry_slice
                                                                  : !is.entry_lp && !is.entry_slice);
    REFUSE(info->Width, info->Width % 16 || info->Width < 16 || info->Width > (is.max_width + 31) / 32 * 32);
    REFUSE(info->Height, info->Height % 16 || info->Height < 16 || info->Height > (is.max_height + 31) / 32 * 32);
    REFUSE(info->Width, info->CropW > is.max_width);
    REFUSE(info->Height, info->CropH > is.max_height);
    REFUSE(info->FrameRateExtN, !info->FrameRateExtN || !info->FrameRateExtD);
    REFUSE(info->PicStruct, info->PicStruct > MFX_PICSTRUCT_PROGRESSIVE);
#undef REFUSE
    if (refused) return MFX_ERR_UNSUPPORTED;
    bool changed = mfx->GopRefDist > 1; /* no B-frames */
    mfx->GopRefDist = 1;
    if ((info->CropW | info->CropH) & 1) { /* cropping goes by two pixels in 4:2:0 */
        info->CropW &= (mfxU16)~1, info->CropH &= (mfxU16)~1;
        changed = true;
    }
    if (!mfx->GopPicSize) mfx->GopPicSize = DEFAULT_GOP;
    if (!mfx->TargetUsage) mfx->TargetUsage = MFX_TARGETUSAGE_BALANCED;
    if (!mfx->BRCParamMultiplier) mfx->BRCParamMultiplier = 1;
    return changed ? MFX_WRN_INCOMPATIBLE_VIDEO_PARAM : MFX_ERR_NONE;
}

EXPORT mfxStatus MFXVideoENCODE_Query(mfxSession session, mfxVideoParam *in, mfxVideoParam *out) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    if (!out) return MFX_ERR_NULL_PTR;
    if (!in) return MFX_ERR_NONE;
    out->mfx = in->mfx; /* but not its extension buffers: ffmpeg's `out` has others, or none */
    return check(session, out);
}

EXPORT mfxStatus MFXVideoENCODE_QueryIOSurf(mfxSession session, mfxVideoParam *param, mfxFrameAllocRequest *request) {
    if (!session || !param || !request) return MFX_ERR_NULL_PTR;
    *request = (mfxFrameAllocRequest){.Info = param->mfx.FrameInfo};
    request->NumFrameMin = request->NumFrameSuggested = (mfxU16)(param->AsyncDepth + 2);
    request->Type = MFX_MEMTYPE_FROM_ENCODE | MFX_MEMTYPE_EXTERNAL_FRAME |
                    (param->IOPattern & MFX_IOPATTERN_IN_VIDEO_MEMORY ? MFX_MEMTYPE_VIDEO_MEMORY_DECODER_TARGET
                                                                      : MFX_MEMTYPE_SYSTEM_MEMORY);
    return MFX_ERR_NONE;
}

/* ---- what is asked for ---- */

static void take_colours(struct facts *facts, const mfxVideoParam *param) {
    const mfxExtVideoSignalInfo *signal = find_buffer(param, MFX_EXTBUFF_VIDEO_SIGNAL_INFO);
    facts_default(facts);
    if (param->mfx.FrameInfo.AspectRatioW && param->mfx.FrameInfo.AspectRatioH)
        facts->sar_num = param->mfx.FrameInfo.AspectRatioW, facts->sar_den = param->mfx.FrameInfo.AspectRatioH;
    if (!signal) return;
    facts->full_range = signal->VideoFullRange;
    if (!signal->ColourDescriptionPresent) return;
    facts->primaries = signal->ColourPrimaries;
    facts->transfer = signal->TransferCharacteristics;
    facts->matrix = signal->MatrixCoefficients;
}

static void take_rate(struct settings *settings, const mfxVideoParam *param) {
    const mfxInfoMFX *mfx = &param->mfx;
    const mfxExtCodingOption3 *more = find_buffer(param, MFX_EXTBUFF_CODING_OPTION3);
    int64_t scale = mfx->BRCParamMultiplier ? mfx->BRCParamMultiplier : 1;
    switch (mfx->RateControlMethod) {
    case MFX_RATECONTROL_CQP: settings->qp = mfx->QPP; return;
    case MFX_RATECONTROL_ICQ: settings->quality = mfx->ICQQuality; return;
    default: break;
    }
    settings->target = mfx->TargetKbps * scale * 1000;
    settings->bits = mfx->MaxKbps * scale * 1000;
    if (settings->bits < settings->target) settings->bits = settings->target; /* the default of Intel's runtime */
    settings->buffer = mfx->BufferSizeInKB * scale * 8000;
    settings->fullness = mfx->InitialDelayInKB * scale * 8000;
    settings->quality = more && mfx->RateControlMethod == MFX_RATECONTROL_QVBR ? more->QVBRQuality : 0;
}

static void take(mfxSession session, const mfxVideoParam *param) {
    struct settings *settings = encoder_settings(session->encode.context->encoder);
    const mfxFrameInfo *info = &param->mfx.FrameInfo;
    take_colours(&settings->facts, param);
    take_rate(settings, param);
    settings->width = info->CropW ? info->CropW : info->Width;
    settings->height = info->CropH ? info->CropH : info->Height;
    settings->frame_num = (int)info->FrameRateExtN, settings->frame_den = (int)info->FrameRateExtD;
    settings->level = param->mfx.CodecId == MFX_CODEC_AVC ? param->mfx.CodecLevel : 0;
}

/* Room for the largest picture. BufferSizeInKB has 16 bits and is of 1000 bytes. */
static void size_buffer(mfxInfoMFX *mfx) {
    unsigned most = mfx->FrameInfo.Width * mfx->FrameInfo.Height * 3u / 1000 + 64;
    unsigned wanted = (unsigned)mfx->BufferSizeInKB * mfx->BRCParamMultiplier;
    if (wanted > most) most = wanted;
    mfx->BRCParamMultiplier = (mfxU16)(most / 65536 + 1);
    mfx->BufferSizeInKB = (mfxU16)(most / mfx->BRCParamMultiplier + 1);
}

EXPORT mfxStatus MFXVideoENCODE_Init(mfxSession session, mfxVideoParam *param) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    mfxVideoParam checked = *param;
    mfxStatus status = check(session, &checked);
    if (status < 0) return MFX_ERR_INVALID_VIDEO_PARAM;
    struct personality is = device_personality(session->device);
    mfxStatus opened =
        component_open(session, &session->encode, &checked, profile_of(&checked.mfx),
                       entrypoint_of(&is, checked.mfx.LowPower), rate_control_of(checked.mfx.RateControlMethod));
    if (opened) return opened;
    struct coder *coder = session->coder = calloc(1, sizeof *coder);
    take(session, &checked);
    if (coder)
        coder->sets_size = encoder_parameter_sets(session->encode.context->encoder, coder->sets, sizeof coder->sets);
    if (coder && coder->sets_size) {
        size_buffer(&session->encode.param.mfx);
        return status;
    }
    encode_close(session);
    return MFX_ERR_DEVICE_FAILED;
}

EXPORT mfxStatus MFXVideoENCODE_Reset(mfxSession session, mfxVideoParam *param) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    if (!session->encode.context) return MFX_ERR_NOT_INITIALIZED;
    mfxVideoParam checked = *param;
    mfxStatus status = check(session, &checked);
    if (status < 0) return MFX_ERR_INVALID_VIDEO_PARAM;
    take(session, &checked);
    session->coder->since_key = 0, session->coder->count = 0; /* the next is an IDR, so it is heeded */
    return status;
}

void encode_close(mfxSession session) {
    component_close(session, &session->encode);
    free(session->coder);
    session->coder = NULL;
}

EXPORT mfxStatus MFXVideoENCODE_Close(mfxSession session) {
    if (!session) return MFX_ERR_INVALID_HANDLE;
    if (!session->encode.context) return MFX_ERR_NOT_INITIALIZED;
    encode_close(session);
    return MFX_ERR_NONE;
}

/* The parameter sets of one or two types, with start codes. */
static void give_sets(const struct coder *coder, bool hevc, unsigned type, mfxU8 *to, mfxU16 *size) {
    const uint8_t *at = coder->sets, *nal;
    size_t length, room = to ? *size : 0;
    *size = 0;
    while ((nal = next_nal(&at, coder->sets + coder->sets_size, &length))) {
        if ((hevc ? nal[0] >> 1 & 63u : nal[0] & 31u) != type || length + 4 > room) continue;
        memcpy(to, (const uint8_t[]){0, 0, 0, 1}, 4);
        memcpy(to + 4, nal, length);
        *size = (mfxU16)(length + 4);
    }
}

EXPORT mfxStatus MFXVideoENCODE_GetVideoParam(mfxSession session, mfxVideoParam *param) {
    if (!session || !session->encode.context) return MFX_ERR_NOT_INITIALIZED;
    const mfxVideoParam *is = &session->encode.param;
    bool hevc = is->mfx.CodecId == MFX_CODEC_HEVC;
    param->mfx = is->mfx, param->AsyncDepth = is->AsyncDepth, param->IOPattern = is->IOPattern;
    mfxExtCodingOptionSPSPPS *sets = find_buffer(param, MFX_EXTBUFF_CODING_OPTION_SPSPPS);
    mfxExtCodingOptionVPS *video = find_buffer(param, MFX_EXTBUFF_CODING_OPTION_VPS);
    if (sets) give_sets(session->coder, hevc, hevc ? 33 : 7, sets->SPSBuffer, &sets->SPSBufSize);
    if (sets) give_sets(session->coder, hevc, hevc ? 34 : 8, sets->PPSBuffer, &sets->PPSBufSize);
    if (video) give_sets(session->coder, hevc, 32, video->VPSBuffer, &video->VPSBufSize);
    return MFX_ERR_NONE;
}

/* ---- pictures ---- */

/* IdrInterval counts I pictures: H.264's 0 makes each of them an IDR, HEVC's 0 none but the first. */
static bool is_due(const struct coder *coder, const mfxInfoMFX *mfx) {
    unsigned interval = mfx->CodecId == MFX_CODEC_HEVC ? mfx->IdrInterval : mfx->IdrInterval + 1u;
    return interval && coder->since_idr + 1 >= interval;
}

static enum coding coding_of(struct coder *coder, const mfxInfoMFX *mfx, const mfxEncodeCtrl *control) {
    mfxU16 wanted = control ? control->FrameType : 0;
    bool due = coder->since_key >= mfx->GopPicSize;
    enum coding coding = CODE_INTER;
    if (!coder->count || wanted & MFX_FRAMETYPE_IDR || (due && is_due(coder, mfx))) coding = CODE_IDR;
    else if (wanted & MFX_FRAMETYPE_I || due) coding = CODE_INTRA;
    if (coding == CODE_IDR) coder->since_idr = 0;
    if (coding == CODE_INTRA) coder->since_idr++;
    coder->since_key = coding == CODE_INTER ? coder->since_key + 1 : 1;
    coder->count++;
    return coding;
}

static mfxU16 frame_type(enum coding coding) {
    return coding == CODE_IDR     ? MFX_FRAMETYPE_IDR | MFX_FRAMETYPE_I | MFX_FRAMETYPE_REF
           : coding == CODE_INTRA ? MFX_FRAMETYPE_I | MFX_FRAMETYPE_REF
                                  : MFX_FRAMETYPE_P | MFX_FRAMETYPE_REF;
}

static struct picture shown(const struct picture *picture, const mfxFrameInfo *info) {
    struct picture part = *picture;
    part.width = info->CropW ? info->CropW : info->Width, part.height = info->CropH ? info->CropH : info->Height;
    return part;
}

static mfxStatus encode(mfxSession session, enum coding coding, mfxFrameSurface1 *input, mfxBitstream *to,
                        mfxSyncPoint *point) {
    struct component *component = &session->encode;
    const mfxFrameInfo *info = &component->param.mfx.FrameInfo;
    enum fate fate = FATE_FINE;
    struct picture picture;
    struct surface *surface;
    mfxStatus status = session_fault(session, "vpl.encode", NULL, &fate);
    if (!status) status = session_fault(session, "encode", NULL, &fate);
    if (!status) status = session_picture(session, input, &picture, &surface);
    if (status) return status;
    size_t start = to->DataOffset + to->DataLength;
    struct buffer coded = {.elements = 1, .data = to->Data + start, .size = to->MaxLength - (unsigned)start};
    int64_t ready = clock_book(session->device, &component->context->line, WORK_ENCODE,
                               (int64_t)info->Width * info->Height, surface ? surface->ready : 0);
    picture = shown(&picture, info);
    if (encoder_picture(component->context->encoder, &picture, coding, fate, &coded)) return MFX_ERR_DEVICE_FAILED;
    to->DataLength += coded.filled;
    *point = session_point(session, ready, "encode", to);
    return MFX_ERR_NONE;
}

EXPORT mfxStatus MFXVideoENCODE_EncodeFrameAsync(mfxSession session, mfxEncodeCtrl *control, mfxFrameSurface1 *surface,
                                                 mfxBitstream *to, mfxSyncPoint *point) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    if (!session->encode.context) return MFX_ERR_NOT_INITIALIZED;
    *point = NULL;
    if (!surface) return MFX_ERR_MORE_DATA; /* nothing is kept back */
    enum coding coding = coding_of(session->coder, &session->encode.param.mfx, control);
    to->TimeStamp = surface->Data.TimeStamp;
    to->DecodeTimeStamp = (mfxI64)surface->Data.TimeStamp;
    to->FrameType = frame_type(coding);
    to->PicStruct = MFX_PICSTRUCT_PROGRESSIVE;
    return encode(session, coding, surface, to, point);
}
