/* The driver's entry point, its table of calls, and those about profiles, configurations, contexts and pictures. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <va/va_drmcommon.h>

#include "simgpu.h"

enum { MAX_PROFILES = 12, MAX_ENTRYPOINTS = 4, MAX_ATTRIBUTES = 64 };

/* ---- what the device offers ---- */

enum codec codec_of(VAProfile profile) {
    switch (profile) {
    case VAProfileH264ConstrainedBaseline:
    case VAProfileH264Main:
    case VAProfileH264High: return CODEC_H264;
    case VAProfileHEVCMain:
    case VAProfileHEVCMain10: return CODEC_HEVC;
    case VAProfileVP9Profile0:
    case VAProfileVP9Profile2: return CODEC_VP9;
    case VAProfileAV1Profile0: return CODEC_AV1;
    default: return CODEC_NONE;
    }
}

/* AV1 has one profile for both depths. */
bool is_ten_bit(VAProfile profile) { return profile == VAProfileHEVCMain10 || profile == VAProfileVP9Profile2; }

static bool offers(const struct personality *is, VAProfile profile, VAEntrypoint entrypoint) {
    if (profile == VAProfileNone) return is->vpp && entrypoint == VAEntrypointVideoProc;
    if (is_ten_bit(profile) && !is->ten_bit) return false;
    enum codec codec = codec_of(profile);
    bool decode = codec && codec != CODEC_AV1 && is->decode >> codec & 1, encode = codec && is->encode >> codec & 1;
    return entrypoint == VAEntrypointVLD          ? decode
           : entrypoint == VAEntrypointEncSlice   ? encode && is->entry_slice
           : entrypoint == VAEntrypointEncSliceLP ? encode && is->entry_lp
                                                  : false;
}

static const VAEntrypoint entrypoints[] = {VAEntrypointVLD, VAEntrypointEncSlice, VAEntrypointEncSliceLP,
                                           VAEntrypointVideoProc};

static int entrypoints_of(const struct personality *is, VAProfile profile, VAEntrypoint *list) {
    int count = 0;
    for (size_t i = 0; i < sizeof entrypoints / sizeof *entrypoints; i++)
        if (offers(is, profile, entrypoints[i])) list[count++] = entrypoints[i];
    return count;
}

static VAStatus query_profiles(VADriverContextP va, VAProfile *list, int *count) {
    static const VAProfile profiles[] = {VAProfileNone,        VAProfileH264ConstrainedBaseline,
                                         VAProfileH264Main,    VAProfileH264High,
                                         VAProfileHEVCMain,    VAProfileHEVCMain10,
                                         VAProfileVP9Profile0, VAProfileVP9Profile2,
                                         VAProfileAV1Profile0};
    struct personality is = device_personality(device_of(va));
    VAEntrypoint some[MAX_ENTRYPOINTS];
    *count = 0;
    for (size_t i = 0; i < sizeof profiles / sizeof *profiles; i++)
        if (entrypoints_of(&is, profiles[i], some)) list[(*count)++] = profiles[i];
    return VA_STATUS_SUCCESS;
}

static VAStatus query_entrypoints(VADriverContextP va, VAProfile profile, VAEntrypoint *list, int *count) {
    struct personality is = device_personality(device_of(va));
    *count = entrypoints_of(&is, profile, list);
    return *count ? VA_STATUS_SUCCESS : VA_STATUS_ERROR_UNSUPPORTED_PROFILE;
}

static uint32_t formats_of(const struct personality *is, VAProfile profile) {
    uint32_t ten = is->ten_bit ? VA_RT_FORMAT_YUV420_10 : 0;
    return profile == VAProfileNone          ? VA_RT_FORMAT_YUV420 | VA_RT_FORMAT_RGB32 | ten
           : profile == VAProfileAV1Profile0 ? VA_RT_FORMAT_YUV420 | ten
           : is_ten_bit(profile)             ? VA_RT_FORMAT_YUV420_10
                                             : VA_RT_FORMAT_YUV420;
}

static const VAConfigAttribValEncHEVCFeatures features = {
    .bits = {.amp = 1, .sao = 1, .temporal_mvp = 1, .cu_qp_delta = 1},
};
static const VAConfigAttribValEncHEVCBlockSizes blocks = {
    /* coding blocks of 8 to 32, transforms of 4 to 32 */
    .bits = {.log2_max_coding_tree_block_size_minus3 = 2,
             .log2_min_coding_tree_block_size_minus3 = 2,
             .log2_max_luma_transform_block_size_minus2 = 3,
             .max_max_transform_hierarchy_depth_inter = 3,
             .max_max_transform_hierarchy_depth_intra = 3},
};

static const VAConfigAttribValEncAV1Ext2 av1 = {
    .bits = {.tile_size_bytes_minus1 = 3, .obu_size_bytes_minus1 = 3, .tx_mode_support = 6},
};

static bool has_b_frames(const struct personality *is, VAProfile profile) {
    return is->b_frames && codec_of(profile) == CODEC_H264 && profile != VAProfileH264ConstrainedBaseline;
}

static uint32_t attribute_of(const struct personality *is, VAProfile profile, VAEntrypoint entrypoint,
                             VAConfigAttribType type) {
    bool encodes = entrypoint == VAEntrypointEncSlice || entrypoint == VAEntrypointEncSliceLP;
    switch (type) {
    case VAConfigAttribRTFormat: return formats_of(is, profile);
    case VAConfigAttribMaxPictureWidth: return (uint32_t)is->max_width;
    case VAConfigAttribMaxPictureHeight: return (uint32_t)is->max_height;
    case VAConfigAttribDecSliceMode:
        return entrypoint == VAEntrypointVLD ? VA_DEC_SLICE_MODE_NORMAL : VA_ATTRIB_NOT_SUPPORTED;
    default: break;
    }
    if (!encodes) return VA_ATTRIB_NOT_SUPPORTED;
    switch (type) {
    case VAConfigAttribRateControl: return is->rate_control;
    case VAConfigAttribEncMaxRefFrames: return 1 | (has_b_frames(is, profile) ? 1 << 16 : 0); /* before and after */
    case VAConfigAttribEncMaxSlices: return 1;
    case VAConfigAttribEncQualityRange: return 7;
    case VAConfigAttribEncHEVCFeatures:
        return codec_of(profile) == CODEC_HEVC ? features.value : VA_ATTRIB_NOT_SUPPORTED;
    case VAConfigAttribEncHEVCBlockSizes:
        return codec_of(profile) == CODEC_HEVC ? blocks.value : VA_ATTRIB_NOT_SUPPORTED;
    case VAConfigAttribEncAV1:
    case VAConfigAttribEncAV1Ext1: return codec_of(profile) == CODEC_AV1 ? 0 : VA_ATTRIB_NOT_SUPPORTED;
    case VAConfigAttribEncAV1Ext2: return codec_of(profile) == CODEC_AV1 ? av1.value : VA_ATTRIB_NOT_SUPPORTED;
    case VAConfigAttribEncPackedHeaders:
        if (!is->packed_headers || codec_of(profile) == CODEC_VP9) return VA_ATTRIB_NOT_SUPPORTED;
        if (codec_of(profile) == CODEC_AV1)
            return VA_ENC_PACKED_HEADER_SEQUENCE | VA_ENC_PACKED_HEADER_PICTURE | VA_ENC_PACKED_HEADER_MISC;
        return VA_ENC_PACKED_HEADER_SEQUENCE | VA_ENC_PACKED_HEADER_SLICE | VA_ENC_PACKED_HEADER_MISC |
               VA_ENC_PACKED_HEADER_RAW_DATA;
    default: return VA_ATTRIB_NOT_SUPPORTED;
    }
}

static VAStatus get_attributes(VADriverContextP va, VAProfile profile, VAEntrypoint entrypoint, VAConfigAttrib *list,
                               int count) {
    struct personality is = device_personality(device_of(va));
    if (!offers(&is, profile, entrypoint)) return VA_STATUS_ERROR_UNSUPPORTED_ENTRYPOINT;
    for (int i = 0; i < count; i++) list[i].value = attribute_of(&is, profile, entrypoint, list[i].type);
    return VA_STATUS_SUCCESS;
}

static const char *part_of(VAEntrypoint entrypoint) {
    return entrypoint == VAEntrypointVLD ? "decode" : entrypoint == VAEntrypointVideoProc ? "process" : "encode";
}

static VAStatus create_config(VADriverContextP va, VAProfile profile, VAEntrypoint entrypoint, VAConfigAttrib *list,
                              int count, VAConfigID *id) {
    struct device *device = device_of(va);
    struct personality is = device_personality(device);
    VAEntrypoint some[MAX_ENTRYPOINTS];
    VAStatus status = fault_status(device, "config", part_of(entrypoint));
    if (status) return status;
    if (!entrypoints_of(&is, profile, some)) return VA_STATUS_ERROR_UNSUPPORTED_PROFILE;
    if (!offers(&is, profile, entrypoint)) return VA_STATUS_ERROR_UNSUPPORTED_ENTRYPOINT;
    struct va_config config = {profile, entrypoint, VA_RC_CQP, formats_of(&is, profile)};
    for (int i = 0; i < count; i++) {
        if (list[i].type == VAConfigAttribRTFormat && !(list[i].value & config.format))
            return VA_STATUS_ERROR_UNSUPPORTED_RT_FORMAT;
        if (list[i].type == VAConfigAttribRTFormat && profile != VAProfileNone) config.format &= list[i].value;
        if (list[i].type == VAConfigAttribRateControl) {
            if ((list[i].value & is.rate_control) != list[i].value) return VA_STATUS_ERROR_ATTR_NOT_SUPPORTED;
            config.rate_control = list[i].value;
        }
    }
    struct va_config *made = malloc(sizeof *made);
    if (made) *made = config;
    *id = objects_add(device, KIND_CONFIG, made);
    if (*id != VA_INVALID_ID) return VA_STATUS_SUCCESS;
    free(made);
    return VA_STATUS_ERROR_ALLOCATION_FAILED;
}

static VAStatus destroy_config(VADriverContextP va, VAConfigID id) {
    struct va_config *config = objects_take(device_of(va), KIND_CONFIG, id);
    free(config);
    return config ? VA_STATUS_SUCCESS : VA_STATUS_ERROR_INVALID_CONFIG;
}

static VAStatus query_config_attributes(VADriverContextP va, VAConfigID id, VAProfile *profile,
                                        VAEntrypoint *entrypoint, VAConfigAttrib *list, int *count) {
    struct va_config *config = objects_get(device_of(va), KIND_CONFIG, id);
    if (!config) return VA_STATUS_ERROR_INVALID_CONFIG;
    *profile = config->profile, *entrypoint = config->entrypoint;
    list[0] = (VAConfigAttrib){VAConfigAttribRTFormat, config->format};
    list[1] = (VAConfigAttrib){VAConfigAttribRateControl, config->rate_control};
    *count = config->entrypoint == VAEntrypointEncSlice || config->entrypoint == VAEntrypointEncSliceLP ? 2 : 1;
    return VA_STATUS_SUCCESS;
}

static VASurfaceAttrib surface_attribute(VASurfaceAttribType type, uint32_t flags, int value) {
    return (VASurfaceAttrib){
        .type = type, .flags = flags, .value = {.type = VAGenericValueTypeInteger, .value.i = value}};
}

static VAStatus query_surface_attributes(VADriverContextP va, VAConfigID id, VASurfaceAttrib *list, unsigned *count) {
    struct device *device = device_of(va);
    struct va_config *config = objects_get(device, KIND_CONFIG, id);
    struct personality is = device_personality(device);
    if (!config) return VA_STATUS_ERROR_INVALID_CONFIG;
    VASurfaceAttrib all[32];
    const uint32_t both = VA_SURFACE_ATTRIB_GETTABLE | VA_SURFACE_ATTRIB_SETTABLE;
    unsigned used = 0;
    int formats;
    const VAImageFormat *format = image_formats(&formats);
    for (int i = 0; i < formats; i++) {
        bool ten = format[i].fourcc == VA_FOURCC_P010;
        bool fits = (config->format & (ten ? VA_RT_FORMAT_YUV420_10 : VA_RT_FORMAT_YUV420)) != 0;
        if (config->entrypoint != VAEntrypointVideoProc) fits &= ten || format[i].fourcc == VA_FOURCC_NV12;
        if (fits) all[used++] = surface_attribute(VASurfaceAttribPixelFormat, both, (int)format[i].fourcc);
    }
    all[used++] = surface_attribute(VASurfaceAttribMinWidth, VA_SURFACE_ATTRIB_GETTABLE, 16);
    all[used++] = surface_attribute(VASurfaceAttribMinHeight, VA_SURFACE_ATTRIB_GETTABLE, 16);
    all[used++] = surface_attribute(VASurfaceAttribMaxWidth, VA_SURFACE_ATTRIB_GETTABLE, is.max_width);
    all[used++] = surface_attribute(VASurfaceAttribMaxHeight, VA_SURFACE_ATTRIB_GETTABLE, is.max_height);
    all[used++] = surface_attribute(VASurfaceAttribMemoryType, both, VA_SURFACE_ATTRIB_MEM_TYPE_VA);
    VAStatus status = list && *count < used ? VA_STATUS_ERROR_MAX_NUM_EXCEEDED : VA_STATUS_SUCCESS;
    if (list && !status) memcpy(list, all, used * sizeof *all);
    *count = used;
    return status;
}

/* ---- contexts ---- */

void context_free(struct device *device, struct context *context) {
    if (!context) return;
    decoder_close(context->decoder);
    encoder_close(context->encoder);
    processor_close(context->processor);
    if (context->counted) clock_session(device, context->work, -1);
    free(context);
}

static VAStatus create_context(VADriverContextP va, VAConfigID config_id, int width, int height, int flag,
                               VASurfaceID *targets, int target_count, VAContextID *id) {
    (void)flag, (void)targets, (void)target_count;
    struct device *device = device_of(va);
    struct va_config *config = objects_get(device, KIND_CONFIG, config_id);
    struct personality is = device_personality(device);
    if (!config) return VA_STATUS_ERROR_INVALID_CONFIG;
    VAStatus status = fault_status(device, "context", part_of(config->entrypoint));
    if (status) return status;
    if (width > (is.max_width + 63) / 64 * 64 || height > (is.max_height + 63) / 64 * 64) /* aligned, for VP9 */
        return VA_STATUS_ERROR_RESOLUTION_NOT_SUPPORTED;
    struct context *context = calloc(1, sizeof *context);
    if (!context) return VA_STATUS_ERROR_ALLOCATION_FAILED;
    context->config = *config;
    context->width = width, context->height = height;
    context->work = config->entrypoint == VAEntrypointVLD         ? WORK_DECODE
                    : config->entrypoint == VAEntrypointVideoProc ? WORK_PROCESS
                                                                  : WORK_ENCODE;
    context->counted = clock_session(device, context->work, 1);
    bool made = context->counted;
    if (made && context->work == WORK_DECODE) made = (context->decoder = decoder_open(context)) != NULL;
    if (made && context->work == WORK_ENCODE) made = (context->encoder = encoder_open(context, &is)) != NULL;
    if (made && context->work == WORK_PROCESS) made = (context->processor = processor_open()) != NULL;
    *id = made ? objects_add(device, KIND_CONTEXT, context) : VA_INVALID_ID;
    if (*id != VA_INVALID_ID) return VA_STATUS_SUCCESS;
    context_free(device, context);
    return VA_STATUS_ERROR_ALLOCATION_FAILED;
}

static VAStatus destroy_context(VADriverContextP va, VAContextID id) {
    struct context *context = objects_take(device_of(va), KIND_CONTEXT, id);
    context_free(device_of(va), context);
    return context ? VA_STATUS_SUCCESS : VA_STATUS_ERROR_INVALID_CONTEXT;
}

/* ---- pictures ---- */

static VAStatus begin_picture(VADriverContextP va, VAContextID id, VASurfaceID target) {
    struct context *context = objects_get(device_of(va), KIND_CONTEXT, id);
    if (!context) return VA_STATUS_ERROR_INVALID_CONTEXT;
    context->target = objects_get(device_of(va), KIND_SURFACE, target);
    return context->target ? VA_STATUS_SUCCESS : VA_STATUS_ERROR_INVALID_SURFACE;
}

static VAStatus render_picture(VADriverContextP va, VAContextID id, VABufferID *buffers, int count) {
    struct context *context = objects_get(device_of(va), KIND_CONTEXT, id);
    if (!context) return VA_STATUS_ERROR_INVALID_CONTEXT;
    for (int i = 0; i < count; i++) {
        struct buffer *buffer = objects_get(device_of(va), KIND_BUFFER, buffers[i]);
        if (!buffer) return VA_STATUS_ERROR_INVALID_BUFFER;
        VAStatus status = context->decoder     ? decoder_render(context->decoder, buffer)
                          : context->encoder   ? encoder_render(context->encoder, buffer)
                          : context->processor ? processor_render(context->processor, buffer)
                                               : VA_STATUS_ERROR_INVALID_CONTEXT;
        if (status) return status;
    }
    return VA_STATUS_SUCCESS;
}

struct booking {
    struct device *device;
    struct context *context;
};

static int64_t book(void *data, int64_t after) {
    struct booking *booking = data;
    struct context *context = booking->context;
    const struct picture *target = &context->target->picture;
    bool coded = context->work != WORK_PROCESS;
    int64_t pixels = (int64_t)(coded ? context->width : target->width) * (coded ? context->height : target->height);
    return clock_book(booking->device, &context->line, context->work, pixels, after);
}

static VAStatus end_picture(VADriverContextP va, VAContextID id) {
    struct device *device = device_of(va);
    struct context *context = objects_get(device, KIND_CONTEXT, id);
    if (!context || !context->target) return VA_STATUS_ERROR_INVALID_CONTEXT;
    struct surface *target = context->target;
    struct booking booking = {device, context};
    VAStatus status;
    enum fate fate = fault_at(device, part_of(context->config.entrypoint), NULL, &status);
    if (fate == FATE_FAIL) return status;
    if (context->work == WORK_PROCESS) {
        status = processor_end(device, context->processor, target, book, &booking);
    } else {
        int64_t ready = book(&booking, context->work == WORK_ENCODE ? target->ready : 0);
        status = context->work == WORK_ENCODE ? encoder_end(device, context->encoder, target, fate, ready)
                                              : decoder_end(context->decoder, target);
        target->ready = ready;
    }
    if (fate == FATE_GREEN && context->work != WORK_ENCODE) picture_blank(&target->picture);
    return status;
}

/* ---- open devices ---- */

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct device *open_devices;

static void list_device(struct device *device, bool open) {
    pthread_mutex_lock(&open_lock);
    struct device **at = &open_devices;
    while (*at && *at != device) at = &(*at)->next;
    if (open) device->next = open_devices, open_devices = device;
    else if (*at) *at = device->next;
    pthread_mutex_unlock(&open_lock);
}

bool device_is_open(const struct device *device) {
    pthread_mutex_lock(&open_lock);
    const struct device *at = open_devices;
    while (at && at != device) at = at->next;
    pthread_mutex_unlock(&open_lock);
    return at != NULL;
}

/* A process that ends without closing the device: the kernel would close it, and its counters would go. */
__attribute__((destructor)) static void leave_devices(void) {
    for (struct device *device = open_devices; device; device = device->next) clock_leave(device);
}

/* ---- the rest of the table ---- */

static VAStatus terminate(VADriverContextP va) {
    struct device *device = device_of(va);
    list_device(device, false);
    objects_close(device);
    clock_close(device);
    pthread_mutex_destroy(&device->lock);
    free(device);
    va->pDriverData = NULL;
    return VA_STATUS_SUCCESS;
}

static VAStatus get_display_attributes(VADriverContextP va, VADisplayAttribute *list, int count) {
    for (int i = 0; i < count; i++) {
        list[i].flags = list[i].type == VADisplayPCIID ? VA_DISPLAY_ATTRIB_GETTABLE : VA_DISPLAY_ATTRIB_NOT_SUPPORTED;
        if (list[i].type == VADisplayPCIID) list[i].value = (int32_t)device_personality(device_of(va)).pci_id;
    }
    return VA_STATUS_SUCCESS;
}

static VAStatus query_display_attributes(VADriverContextP va, VADisplayAttribute *list, int *count) {
    list[0].type = VADisplayPCIID;
    *count = 1;
    return get_display_attributes(va, list, 1);
}

static VAStatus query_subpicture_formats(VADriverContextP va, VAImageFormat *list, unsigned *flags, unsigned *count) {
    (void)va, (void)list, (void)flags;
    *count = 0;
    return VA_STATUS_SUCCESS;
}

/* libva wants every entry to be there. None of these does anything, and none takes its arguments. */
static VAStatus unimplemented(void) { return VA_STATUS_ERROR_UNIMPLEMENTED; }

static void fill_table(struct VADriverVTable *table) {
    void *nothing;
    VAStatus (*no)(void) = unimplemented;
    memcpy(&nothing, &no, sizeof nothing);
#define MISSING(name) memcpy(&table->name, &nothing, sizeof nothing)
    MISSING(vaSetImagePalette);
    MISSING(vaCreateSubpicture);
    MISSING(vaDestroySubpicture);
    MISSING(vaSetSubpictureImage);
    MISSING(vaSetSubpictureChromakey);
    MISSING(vaSetSubpictureGlobalAlpha);
    MISSING(vaAssociateSubpicture);
    MISSING(vaDeassociateSubpicture);
    MISSING(vaSetDisplayAttributes);
    MISSING(vaPutSurface);
    MISSING(vaQuerySurfaceError);
#undef MISSING
    table->vaTerminate = terminate;
    table->vaQueryConfigProfiles = query_profiles;
    table->vaQueryConfigEntrypoints = query_entrypoints;
    table->vaGetConfigAttributes = get_attributes;
    table->vaCreateConfig = create_config;
    table->vaDestroyConfig = destroy_config;
    table->vaQueryConfigAttributes = query_config_attributes;
    table->vaQuerySurfaceAttributes = query_surface_attributes;
    table->vaCreateContext = create_context;
    table->vaDestroyContext = destroy_context;
    table->vaBeginPicture = begin_picture;
    table->vaRenderPicture = render_picture;
    table->vaEndPicture = end_picture;
    table->vaQuerySubpictureFormats = query_subpicture_formats;
    table->vaQueryDisplayAttributes = query_display_attributes;
    table->vaGetDisplayAttributes = get_display_attributes;
    objects_table(table);
}

/* The node that the application opened, by its own name. */
static void find_node(VADriverContextP va, struct device *device) {
    const struct drm_state *drm = va->drm_state;
    char link[64];
    device->drm_fd = drm ? drm->fd : -1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", device->drm_fd);
    ssize_t size = drm ? readlink(link, device->node, sizeof device->node - 1) : 0;
    device->node[size > 0 ? size : 0] = 0;
}

static VAStatus open_device(VADriverContextP va, struct device *device) {
    find_node(va, device);
    config_default(&device->config);
    if (config_path(device->node, device->config_file, sizeof device->config_file)) {
        if (stat(device->config_file, &device->config_stat) < 0 || !config_read(device->config_file, &device->config))
            return VA_STATUS_ERROR_OPERATION_FAILED;
    } else if (getenv("SIMGPU_CONFIG")) {
        return VA_STATUS_ERROR_OPERATION_FAILED; /* of several devices, this is none */
    }
    VAStatus status = clock_open(device) ? fault_status(device, "init", NULL) : VA_STATUS_ERROR_ALLOCATION_FAILED;
    if (!status && objects_open(device)) return VA_STATUS_SUCCESS;
    clock_close(device);
    return status ? status : VA_STATUS_ERROR_ALLOCATION_FAILED;
}

VAStatus __vaDriverInit_1_0(VADriverContextP va);

__attribute__((visibility("default"))) VAStatus __vaDriverInit_1_0(VADriverContextP va) {
    struct device *device = calloc(1, sizeof *device);
    if (!device) return VA_STATUS_ERROR_ALLOCATION_FAILED;
    pthread_mutex_init(&device->lock, NULL);
    VAStatus status = open_device(va, device);
    if (status) {
        pthread_mutex_destroy(&device->lock);
        free(device);
        return status;
    }
    memcpy(device->vendor, device->config.is.vendor, sizeof device->vendor);
    list_device(device, true);
    va->pDriverData = device;
    va->version_major = 1;
    va->version_minor = 0;
    va->str_vendor = device->vendor;
    va->max_profiles = MAX_PROFILES;
    va->max_entrypoints = MAX_ENTRYPOINTS;
    va->max_attributes = MAX_ATTRIBUTES;
    va->max_display_attributes = 4;
    va->max_subpic_formats = 1;
    image_formats(&va->max_image_formats);
    fill_table(va->vtable);
    if (!device->config.is.sync_buffer) va->vtable->vaSyncBuffer = NULL;
    vpp_table(va->vtable_vpp);
    return VA_STATUS_SUCCESS;
}
