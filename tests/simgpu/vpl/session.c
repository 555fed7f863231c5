/* Sessions: which device they are on, where the pixels of a surface are, when a result is ready. */
#include <stdlib.h>
#include <string.h>

#include "vpl.h"

bool session_lives(mfxSession session) { return session->device && device_is_open(session->device); }

mfxStatus session_fault(mfxSession session, const char *call, const char *part, enum fate *fate) {
    VAStatus status;
    enum fate found = fault_at(session->device, call, part, &status);
    /* What VA-API refuses is a failed device to Intel's runtime, whatever the reason. */
    if (found == FATE_FAIL) return status < 0 ? (mfxStatus)status : MFX_ERR_DEVICE_FAILED;
    if (found != FATE_FINE) *fate = found;
    return MFX_ERR_NONE;
}

mfxSyncPoint session_point(mfxSession session, int64_t ready, const char *part, mfxBitstream *coded) {
    mfxSyncPoint point = &session->points[session->next_point++ % POINTS];
    *point = (struct _mfxSyncPoint){.ready = ready, .part = part, .coded = coded};
    return point;
}

/* ---- surfaces ---- */

uint32_t fourcc_of(mfxU32 mfx) {
    switch (mfx) {
    case MFX_FOURCC_NV12: return VA_FOURCC_NV12;
    case MFX_FOURCC_P010: return VA_FOURCC_P010;
    case MFX_FOURCC_YV12: return VA_FOURCC_I420; /* ffmpeg names each plane by itself */
    case MFX_FOURCC_RGB4: return VA_FOURCC_BGRA;
    default: return 0;
    }
}

static bool in_system_memory(const mfxFrameSurface1 *from, struct picture *picture) {
    const mfxFrameData *data = &from->Data;
    int pitch = data->PitchHigh << 16 | data->PitchLow;
    *picture = (struct picture){
        .fourcc = fourcc_of(from->Info.FourCC),
        .width = from->Info.CropX + from->Info.CropW,
        .height = from->Info.CropY + from->Info.CropH,
        .planes = 2,
        .data = {data->Y, data->UV},
        .stride = {pitch, pitch},
    };
    if (picture->fourcc == VA_FOURCC_I420) {
        picture->planes = 3, picture->data[1] = data->U, picture->data[2] = data->V;
        picture->stride[1] = picture->stride[2] = pitch / 2;
    } else if (picture->fourcc == VA_FOURCC_BGRA) {
        picture->planes = 1, picture->data[0] = data->B;
    }
    return picture->fourcc && picture->data[0];
}

mfxStatus session_picture(mfxSession session, const mfxFrameSurface1 *from, struct picture *picture,
                          struct surface **surface) {
    *surface = NULL;
    if (!from->Data.MemId) return in_system_memory(from, picture) ? MFX_ERR_NONE : MFX_ERR_NULL_PTR;
    mfxHDLPair pair = {0}; /* ffmpeg writes both */
    if (!session->allocator.GetHDL) return MFX_ERR_NOT_INITIALIZED;
    mfxStatus status = session->allocator.GetHDL(session->allocator.pthis, from->Data.MemId, (mfxHDL *)&pair);
    if (status || !pair.first) return MFX_ERR_INVALID_HANDLE;
    *surface = objects_get(session->device, KIND_SURFACE, *(const VASurfaceID *)pair.first);
    if (!*surface) return MFX_ERR_INVALID_HANDLE;
    *picture = (*surface)->picture;
    return MFX_ERR_NONE;
}

/* ---- components ---- */

static mfxStatus status_of(VAStatus status) {
    switch (status) {
    case VA_STATUS_SUCCESS: return MFX_ERR_NONE;
    case VA_STATUS_ERROR_UNSUPPORTED_PROFILE:
    case VA_STATUS_ERROR_UNSUPPORTED_ENTRYPOINT:
    case VA_STATUS_ERROR_UNSUPPORTED_RT_FORMAT: return MFX_ERR_UNSUPPORTED;
    default: return MFX_ERR_DEVICE_FAILED;
    }
}

mfxStatus component_open(mfxSession session, struct component *component, const mfxVideoParam *param, VAProfile profile,
                         VAEntrypoint entrypoint, uint32_t rate_control) {
    VADriverContextP va = session->va;
    const mfxFrameInfo *info = entrypoint == VAEntrypointVideoProc ? &param->vpp.Out : &param->mfx.FrameInfo;
    VAConfigAttrib attribute = {VAConfigAttribRateControl, rate_control};
    if (component->context) return MFX_ERR_UNDEFINED_BEHAVIOR;
    VAStatus status =
        va->vtable->vaCreateConfig(va, profile, entrypoint, &attribute, rate_control ? 1 : 0, &component->config);
    if (status) return status_of(status);
    status = va->vtable->vaCreateContext(va, component->config, info->Width, info->Height, VA_PROGRESSIVE, NULL, 0,
                                         &component->id);
    if (status) {
        va->vtable->vaDestroyConfig(va, component->config);
        return status_of(status);
    }
    component->context = objects_get(session->device, KIND_CONTEXT, component->id);
    component->param = *param;
    component->param.ExtParam = NULL, component->param.NumExtParam = 0; /* the caller's memory */
    return MFX_ERR_NONE;
}

void component_close(mfxSession session, struct component *component) {
    if (component->context && session_lives(session)) {
        session->va->vtable->vaDestroyContext(session->va, component->id);
        session->va->vtable->vaDestroyConfig(session->va, component->config);
    }
    *component = (struct component){0};
}

void *find_buffer(const mfxVideoParam *param, mfxU32 id) {
    for (int i = 0; i < param->NumExtParam; i++)
        if (param->ExtParam[i] && param->ExtParam[i]->BufferId == id) return param->ExtParam[i];
    return NULL;
}

/* ---- exported ---- */

EXPORT mfxStatus MFXInitialize(mfxInitializationParam param, mfxSession *session) {
    if (param.AccelerationMode != MFX_ACCEL_MODE_VIA_VAAPI) return MFX_ERR_UNSUPPORTED;
    return (*session = calloc(1, sizeof **session)) ? MFX_ERR_NONE : MFX_ERR_MEMORY_ALLOC;
}

EXPORT mfxStatus MFXClose(mfxSession session) {
    if (!session) return MFX_ERR_INVALID_HANDLE;
    encode_close(session);
    decode_close(session);
    process_close(session);
    free(session);
    return MFX_ERR_NONE;
}

EXPORT mfxStatus MFXQueryIMPL(mfxSession session, mfxIMPL *implementation) {
    if (!session) return MFX_ERR_INVALID_HANDLE;
    *implementation = MFX_IMPL_HARDWARE | MFX_IMPL_VIA_VAAPI; /* ffmpeg asserts the latter */
    return MFX_ERR_NONE;
}

EXPORT mfxStatus MFXQueryVersion(mfxSession session, mfxVersion *version) {
    if (!session) return MFX_ERR_INVALID_HANDLE;
    version->Major = API_MAJOR, version->Minor = API_MINOR;
    return MFX_ERR_NONE;
}

EXPORT mfxStatus MFXJoinSession(mfxSession session, mfxSession child) {
    return session && child ? MFX_ERR_NONE : MFX_ERR_INVALID_HANDLE;
}

EXPORT mfxStatus MFXVideoCORE_SetHandle(mfxSession session, mfxHandleType type, mfxHDL handle) {
    if (!session || !handle) return MFX_ERR_INVALID_HANDLE;
    if (type != MFX_HANDLE_VA_DISPLAY) return MFX_ERR_UNSUPPORTED;
    VADriverContextP va = ((VADisplayContextP)handle)->pDriverContext;
    struct device *device = va ? va->pDriverData : NULL;
    if (!device || !device_is_open(device)) return MFX_ERR_INVALID_HANDLE; /* another driver's display */
    if (!device_personality(device).vpl) return MFX_ERR_UNSUPPORTED;
    session->display = handle, session->va = va, session->device = device;
    enum fate fate;
    mfxStatus status = session_fault(session, "vpl.init", NULL, &fate);
    if (status) session->device = NULL;
    return status;
}

EXPORT mfxStatus MFXVideoCORE_GetHandle(mfxSession session, mfxHandleType type, mfxHDL *handle) {
    if (!session) return MFX_ERR_INVALID_HANDLE;
    if (type != MFX_HANDLE_VA_DISPLAY || !session->device) return MFX_ERR_NOT_FOUND;
    *handle = session->display;
    return MFX_ERR_NONE;
}

EXPORT mfxStatus MFXVideoCORE_SetFrameAllocator(mfxSession session, mfxFrameAllocator *allocator) {
    if (!session) return MFX_ERR_INVALID_HANDLE;
    session->allocator = *allocator; /* ffmpeg's lies on the stack */
    return MFX_ERR_NONE;
}

EXPORT mfxStatus MFXVideoCORE_SyncOperation(mfxSession session, mfxSyncPoint point, mfxU32 wait) {
    if (!session || !session_lives(session)) return MFX_ERR_INVALID_HANDLE;
    if (!point) return MFX_ERR_NULL_PTR;
    int64_t until = clock_now() + wait * INT64_C(1000000);
    clock_wait(session->device, point->ready < until ? point->ready : until);
    if (point->ready > until) return MFX_WRN_IN_EXECUTION;
    enum fate fate = FATE_FINE;
    mfxStatus status = session_fault(session, "vpl.sync", point->part, &fate);
    if ((status < 0 || fate == FATE_DROP) && point->coded) point->coded->DataLength = 0;
    return status;
}
