/* VPP: scaling, cropping, conversion, deinterlacing, turning. Between the device's memory and the system's, at one size
 * and format, it is a copy: that is how ffmpeg loads pictures up and down. */
#include <stdlib.h>

#include "vpl.h"

struct frames {
    VAProcPipelineParameterBuffer pipeline; /* what is the same for all pictures */
    bool copies, deinterlaces, doubles;     /* a picture for each field */
    bool second;                            /* the first field of this picture is done */
};

static bool fits(const struct personality *is, const mfxFrameInfo *info) {
    return fourcc_of(info->FourCC) && (is->ten_bit || info->FourCC != MFX_FOURCC_P010) && info->CropW >= 16 &&
           info->CropH >= 16 && info->CropW <= is->max_width && info->CropH <= is->max_height;
}

static bool is_copy(const mfxVideoParam *param) {
    const mfxFrameInfo *in = &param->vpp.In, *out = &param->vpp.Out;
    bool system = param->IOPattern & (MFX_IOPATTERN_IN_SYSTEM_MEMORY | MFX_IOPATTERN_OUT_SYSTEM_MEMORY);
    return system && !param->NumExtParam && in->FourCC == out->FourCC && in->CropX == out->CropX &&
           in->CropY == out->CropY && in->CropW == out->CropW && in->CropH == out->CropH;
}

static bool is_double(const mfxVideoParam *param) {
    const mfxFrameInfo *in = &param->vpp.In, *out = &param->vpp.Out;
    return (uint64_t)in->FrameRateExtN * 2 * out->FrameRateExtD == (uint64_t)out->FrameRateExtN * in->FrameRateExtD;
}

static mfxStatus check(mfxSession session, const mfxVideoParam *param) {
    struct personality is = device_personality(session->device);
    bool skipped = false;
    if (!fits(&is, &param->vpp.In) || !fits(&is, &param->vpp.Out)) return MFX_ERR_UNSUPPORTED;
    if (!is.vpp && !is_copy(param)) return MFX_ERR_UNSUPPORTED;
    for (int i = 0; i < param->NumExtParam; i++) switch (param->ExtParam[i]->BufferId) {
        case MFX_EXTBUFF_VPP_SCALING:
        case MFX_EXTBUFF_VPP_DEINTERLACING:
        case MFX_EXTBUFF_VPP_ROTATION:
        case MFX_EXTBUFF_VPP_MIRRORING:
        case MFX_EXTBUFF_VIDEO_SIGNAL_INFO_IN:
        case MFX_EXTBUFF_VIDEO_SIGNAL_INFO_OUT: break;
        case MFX_EXTBUFF_VPP_FRAME_RATE_CONVERSION: /* from fields to frames only */
            if (!find_buffer(param, MFX_EXTBUFF_VPP_DEINTERLACING) || !is_double(param)) return MFX_ERR_UNSUPPORTED;
            break;
        case MFX_EXTBUFF_VPP_COMPOSITE: return MFX_ERR_UNSUPPORTED;
        default: skipped = true;
        }
    return skipped ? MFX_WRN_FILTER_SKIPPED : MFX_ERR_NONE;
}

EXPORT mfxStatus MFXVideoVPP_Query(mfxSession session, mfxVideoParam *in, mfxVideoParam *out) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    if (!out) return MFX_ERR_NULL_PTR;
    if (!in) return MFX_ERR_NONE;
    out->vpp = in->vpp;
    return check(session, in);
}

static VAProcColorProperties colours_of(const mfxVideoParam *param, mfxU32 id) {
    const mfxExtVideoSignalInfo *signal = find_buffer(param, id);
    if (!signal) return (VAProcColorProperties){0};
    return (VAProcColorProperties){
        .color_range = signal->VideoFullRange ? VA_SOURCE_RANGE_FULL : VA_SOURCE_RANGE_REDUCED,
        .matrix_coefficients = (uint8_t)signal->MatrixCoefficients,
    };
}

static void take(struct frames *frames, const mfxVideoParam *param) {
    const mfxExtVPPRotation *rotation = find_buffer(param, MFX_EXTBUFF_VPP_ROTATION);
    const mfxExtVPPMirroring *mirroring = find_buffer(param, MFX_EXTBUFF_VPP_MIRRORING);
    frames->copies = is_copy(param);
    frames->deinterlaces = find_buffer(param, MFX_EXTBUFF_VPP_DEINTERLACING) != NULL;
    frames->doubles = find_buffer(param, MFX_EXTBUFF_VPP_FRAME_RATE_CONVERSION) != NULL;
    frames->second = false;
    frames->pipeline = (VAProcPipelineParameterBuffer){
        .surface_color_standard = VAProcColorStandardExplicit,
        .input_color_properties = colours_of(param, MFX_EXTBUFF_VIDEO_SIGNAL_INFO_IN),
        .output_color_standard = VAProcColorStandardExplicit,
        .output_color_properties = colours_of(param, MFX_EXTBUFF_VIDEO_SIGNAL_INFO_OUT),
        .rotation_state = rotation ? rotation->Angle / 90u : VA_ROTATION_NONE, /* both turn clockwise */
        .mirror_state = mirroring ? mirroring->Type : VA_MIRROR_NONE,          /* the same numbers */
    };
}

EXPORT mfxStatus MFXVideoVPP_Init(mfxSession session, mfxVideoParam *param) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    if (session->frames) return MFX_ERR_UNDEFINED_BEHAVIOR;
    mfxStatus status = check(session, param);
    if (status < 0) return status;
    if (!is_copy(param)) {
        mfxStatus opened = component_open(session, &session->process, param, VAProfileNone, VAEntrypointVideoProc, 0);
        if (opened) return opened;
    } else {
        session->process.param = *param;
    }
    if ((session->frames = calloc(1, sizeof *session->frames))) {
        take(session->frames, param);
        return status;
    }
    process_close(session);
    return MFX_ERR_MEMORY_ALLOC;
}

EXPORT mfxStatus MFXVideoVPP_Reset(mfxSession session, mfxVideoParam *param) {
    if (!session || !session->frames) return MFX_ERR_NOT_INITIALIZED;
    mfxStatus status = check(session, param);
    if (status >= 0) take(session->frames, param);
    return status;
}

void process_close(mfxSession session) {
    component_close(session, &session->process);
    free(session->frames);
    session->frames = NULL;
}

EXPORT mfxStatus MFXVideoVPP_Close(mfxSession session) {
    if (!session) return MFX_ERR_INVALID_HANDLE;
    if (!session->frames) return MFX_ERR_NOT_INITIALIZED;
    process_close(session);
    return MFX_ERR_NONE;
}

static VARectangle region_of(const mfxFrameInfo *info) {
    return (VARectangle){(int16_t)info->CropX, (int16_t)info->CropY, info->CropW, info->CropH};
}

static bool draw(const struct frames *frames, const mfxFrameSurface1 *in, const struct picture *from,
                 const mfxFrameSurface1 *out, const struct picture *to) {
    VAProcPipelineParameterBuffer pipeline = frames->pipeline;
    VARectangle in_region = region_of(&in->Info), out_region = region_of(&out->Info);
    pipeline.surface_region = &in_region, pipeline.output_region = &out_region;
    bool interlaced = in->Info.PicStruct & (MFX_PICSTRUCT_FIELD_TFF | MFX_PICSTRUCT_FIELD_BFF);
    bool bottom = frames->second != ((in->Info.PicStruct & MFX_PICSTRUCT_FIELD_BFF) != 0);
    VAProcFilterParameterBufferDeinterlacing filter = {
        .type = VAProcFilterDeinterlacing,
        .algorithm = VAProcDeinterlacingBob,
        .flags = bottom ? VA_DEINTERLACING_BOTTOM_FIELD : 0,
    };
    return picture_process(&pipeline, frames->deinterlaces && interlaced ? &filter : NULL, NULL, from, to);
}

static mfxStatus process(mfxSession session, const mfxFrameSurface1 *in, mfxFrameSurface1 *out, int64_t *ready) {
    struct frames *frames = session->frames;
    struct picture from, to;
    struct surface *source, *target;
    enum fate fate = FATE_FINE;
    mfxStatus status = session_fault(session, frames->copies ? "vpl.copy" : "vpl.process", NULL, &fate);
    if (!status && !frames->copies) status = session_fault(session, "process", NULL, &fate);
    if (!status) status = session_picture(session, in, &from, &source);
    if (!status) status = session_picture(session, out, &to, &target);
    if (status) return status;
    if (!draw(frames, in, &from, out, &to)) return MFX_ERR_DEVICE_FAILED;
    if (fate == FATE_GREEN) picture_blank(&to);
    *ready = source ? source->ready : 0;
    if (!frames->copies)
        *ready = clock_book(session->device, &session->process.context->line, WORK_PROCESS,
                            (int64_t)out->Info.CropW * out->Info.CropH, *ready);
    if (target) target->ready = *ready;
    return MFX_ERR_NONE;
}

EXPORT mfxStatus MFXVideoVPP_RunFrameVPPAsync(mfxSession session, mfxFrameSurface1 *in, mfxFrameSurface1 *out,
                                              mfxExtVppAuxData *aux, mfxSyncPoint *point) {
    (void)aux;
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    if (!session->frames) return MFX_ERR_NOT_INITIALIZED;
    *point = NULL;
    if (!in) return MFX_ERR_MORE_DATA; /* nothing is kept back */
    struct frames *frames = session->frames;
    const mfxFrameInfo *rate = &session->process.param.vpp.Out;
    int64_t ready;
    mfxStatus status = process(session, in, out, &ready);
    if (status) return status;
    out->Data.TimeStamp = in->Data.TimeStamp;
    if (frames->second) out->Data.TimeStamp += 90000ull * rate->FrameRateExtD / rate->FrameRateExtN;
    *point = session_point(session, ready, frames->copies ? "copy" : "process", NULL);
    if (!frames->doubles) return MFX_ERR_NONE;
    frames->second = !frames->second;
    return frames->second ? MFX_ERR_MORE_SURFACE : MFX_ERR_NONE; /* the same picture again, into another surface */
}
