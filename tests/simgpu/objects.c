/* Handles to things; surfaces, buffers and images, and the calls that make, map and copy them. */
#include <stdlib.h>
#include <string.h>
#include <va/va_drmcommon.h>

#include "simgpu.h"

struct object_table {
    struct {
        void **items;
        unsigned size;
    } kinds[KINDS];
};

static unsigned handle(enum kind kind, unsigned index) { return (unsigned)(kind + 1) << 24 | index; }

bool objects_open(struct device *device) { return (device->objects = calloc(1, sizeof *device->objects)) != NULL; }

unsigned objects_add(struct device *device, enum kind kind, void *object) {
    if (!object) return VA_INVALID_ID;
    pthread_mutex_lock(&device->lock);
    unsigned *size = &device->objects->kinds[kind].size, index = 0;
    void ***items = &device->objects->kinds[kind].items;
    while (index < *size && (*items)[index]) index++;
    if (index == *size) {
        unsigned larger = *size ? *size * 2 : 32;
        void **grown = realloc(*items, larger * sizeof *grown);
        if (!grown) {
            pthread_mutex_unlock(&device->lock);
            return VA_INVALID_ID;
        }
        memset(grown + *size, 0, (larger - *size) * sizeof *grown);
        *items = grown, *size = larger;
    }
    (*items)[index] = object;
    pthread_mutex_unlock(&device->lock);
    return handle(kind, index);
}

static void *look(struct device *device, enum kind kind, unsigned id, bool take) {
    unsigned index = id & 0xffffff;
    void *object = NULL;
    pthread_mutex_lock(&device->lock);
    if (id == handle(kind, index) && index < device->objects->kinds[kind].size) {
        object = device->objects->kinds[kind].items[index];
        if (take) device->objects->kinds[kind].items[index] = NULL;
    }
    pthread_mutex_unlock(&device->lock);
    return object;
}

void *objects_get(struct device *device, enum kind kind, unsigned id) { return look(device, kind, id, false); }
void *objects_take(struct device *device, enum kind kind, unsigned id) { return look(device, kind, id, true); }

/* ---- pictures and surfaces ---- */

static const VAImageFormat formats[] = {
    {.fourcc = VA_FOURCC_NV12, .byte_order = VA_LSB_FIRST, .bits_per_pixel = 12},
    {.fourcc = VA_FOURCC_P010, .byte_order = VA_LSB_FIRST, .bits_per_pixel = 24},
    {.fourcc = VA_FOURCC_I420, .byte_order = VA_LSB_FIRST, .bits_per_pixel = 12},
    {.fourcc = VA_FOURCC_YV12, .byte_order = VA_LSB_FIRST, .bits_per_pixel = 12},
    {VA_FOURCC_BGRA, VA_LSB_FIRST, 32, 32, 0xff0000, 0xff00, 0xff, 0xff000000, {0}},
    {VA_FOURCC_BGRX, VA_LSB_FIRST, 32, 24, 0xff0000, 0xff00, 0xff, 0, {0}},
    {VA_FOURCC_RGBA, VA_LSB_FIRST, 32, 32, 0xff, 0xff00, 0xff0000, 0xff000000, {0}},
    {VA_FOURCC_RGBX, VA_LSB_FIRST, 32, 24, 0xff, 0xff00, 0xff0000, 0, {0}},
};

const VAImageFormat *image_formats(int *count) {
    *count = sizeof formats / sizeof *formats;
    return formats;
}

size_t picture_layout(struct picture *picture, uint32_t fourcc, int width, int height, uint8_t *memory) {
    int luma = (width + 63) & ~63;
    size_t rows = (size_t)(height + 15) & ~(size_t)15, chroma = rows / 2, offsets[MAX_PLANES] = {0}, size = 0;
    *picture = (struct picture){.fourcc = fourcc, .width = width, .height = height};
    switch (fourcc) {
    case VA_FOURCC_P010: luma *= 2; /* fall through */
    case VA_FOURCC_NV12:
        picture->planes = 2;
        picture->stride[0] = picture->stride[1] = luma;
        offsets[1] = (size_t)luma * rows;
        size = offsets[1] + (size_t)luma * chroma;
        break;
    case VA_FOURCC_I420:
    case VA_FOURCC_YV12:
        picture->planes = 3;
        picture->stride[0] = luma, picture->stride[1] = picture->stride[2] = luma / 2;
        offsets[1] = (size_t)luma * rows;
        offsets[2] = offsets[1] + (size_t)luma / 2 * chroma;
        size = offsets[2] + (size_t)luma / 2 * chroma;
        break;
    case VA_FOURCC_BGRA:
    case VA_FOURCC_BGRX:
    case VA_FOURCC_RGBA:
    case VA_FOURCC_RGBX:
        picture->planes = 1;
        picture->stride[0] = luma * 4;
        size = (size_t)luma * 4 * rows;
        break;
    default: return 0;
    }
    for (int i = 0; i < picture->planes; i++) picture->data[i] = memory ? memory + offsets[i] : NULL;
    return size;
}

void picture_blank(const struct picture *picture) {
    for (int i = 0; i < picture->planes; i++) {
        int rows = i && picture->planes > 1 ? (picture->height + 1) / 2 : picture->height;
        for (int row = 0; row < rows; row++)
            memset(picture->data[i] + (size_t)row * picture->stride[i], 0, (size_t)picture->stride[i]);
    }
}

static void surface_free(struct device *device, struct surface *surface) {
    if (!surface) return;
    if (surface->memory) clock_memory(device, -(int64_t)surface->size);
    free(surface->memory);
    free(surface);
}

static uint32_t fourcc_of(unsigned format, const VASurfaceAttrib *attributes, unsigned count, VAStatus *status) {
    uint32_t fourcc = 0;
    for (unsigned i = 0; i < count; i++) {
        const VASurfaceAttrib *attribute = &attributes[i];
        if (!(attribute->flags & VA_SURFACE_ATTRIB_SETTABLE)) continue;
        if (attribute->type == VASurfaceAttribPixelFormat) fourcc = (uint32_t)attribute->value.value.i;
        if (attribute->type == VASurfaceAttribMemoryType && attribute->value.value.i != VA_SURFACE_ATTRIB_MEM_TYPE_VA)
            *status = VA_STATUS_ERROR_UNSUPPORTED_MEMORY_TYPE;
    }
    if (fourcc) return fourcc;
    return format == VA_RT_FORMAT_YUV420_10 ? VA_FOURCC_P010
           : format == VA_RT_FORMAT_RGB32   ? VA_FOURCC_BGRA
           : format == VA_RT_FORMAT_YUV420  ? VA_FOURCC_NV12
                                            : 0;
}

static struct surface *surface_new(struct device *device, uint32_t fourcc, int width, int height, VAStatus *status) {
    struct surface *surface = calloc(1, sizeof *surface);
    *status = VA_STATUS_ERROR_ALLOCATION_FAILED;
    if (!surface) return NULL;
    size_t size = picture_layout(&surface->picture, fourcc, width, height, NULL);
    if (!size) *status = VA_STATUS_ERROR_UNSUPPORTED_RT_FORMAT;
    else if (clock_memory(device, (int64_t)size)) {
        surface->size = size;
        if ((surface->memory = calloc(1, size + 64))) { /* swscale may read a few bytes further */
            picture_layout(&surface->picture, fourcc, width, height, surface->memory);
            return surface;
        }
        clock_memory(device, -(int64_t)size);
    }
    free(surface);
    return NULL;
}

static VAStatus destroy_surfaces(VADriverContextP va, VASurfaceID *list, int count) {
    for (int i = 0; i < count; i++) surface_free(device_of(va), objects_take(device_of(va), KIND_SURFACE, list[i]));
    return VA_STATUS_SUCCESS;
}

static VAStatus create_surfaces2(VADriverContextP va, unsigned format, unsigned width, unsigned height,
                                 VASurfaceID *surfaces, unsigned count, VASurfaceAttrib *attributes,
                                 unsigned attribute_count) {
    struct device *device = device_of(va);
    struct personality is = device_personality(device);
    VAStatus status = fault_status(device, "surface", NULL);
    uint32_t fourcc = fourcc_of(format, attributes, attribute_count, &status);
    if (status) return status;
    if (fourcc == VA_FOURCC_P010 && !is.ten_bit) return VA_STATUS_ERROR_UNSUPPORTED_RT_FORMAT;
    if (width > (unsigned)is.max_width + 64 || height > (unsigned)is.max_height + 64)
        return VA_STATUS_ERROR_RESOLUTION_NOT_SUPPORTED;
    for (unsigned i = 0; i < count; i++) {
        struct surface *surface = surface_new(device, fourcc, (int)width, (int)height, &status);
        surfaces[i] = objects_add(device, KIND_SURFACE, surface);
        if (surfaces[i] == VA_INVALID_ID) {
            surface_free(device, surface);
            destroy_surfaces(va, surfaces, (int)i);
            return status;
        }
    }
    return VA_STATUS_SUCCESS;
}

static VAStatus create_surfaces(VADriverContextP va, int width, int height, int format, int count, VASurfaceID *list) {
    return create_surfaces2(va, (unsigned)format, (unsigned)width, (unsigned)height, list, (unsigned)count, NULL, 0);
}

static VAStatus sync_surface(VADriverContextP va, VASurfaceID id) {
    struct surface *surface = objects_get(device_of(va), KIND_SURFACE, id);
    if (!surface) return VA_STATUS_ERROR_INVALID_SURFACE;
    VAStatus status = fault_status(device_of(va), "sync", "surface");
    if (!status) clock_wait(device_of(va), surface->ready);
    return status;
}

static VAStatus query_surface_status(VADriverContextP va, VASurfaceID id, VASurfaceStatus *status) {
    struct surface *surface = objects_get(device_of(va), KIND_SURFACE, id);
    if (!surface) return VA_STATUS_ERROR_INVALID_SURFACE;
    *status = surface->ready > clock_now() ? VASurfaceRendering : VASurfaceReady;
    return VA_STATUS_SUCCESS;
}

/* ---- buffers ---- */

static void buffer_free(struct buffer *buffer) {
    if (!buffer) return;
    if (!buffer->borrowed) free(buffer->data);
    free(buffer);
}

static unsigned buffer_add(struct device *device, struct buffer *buffer) {
    unsigned id = objects_add(device, KIND_BUFFER, buffer);
    if (id == VA_INVALID_ID) buffer_free(buffer);
    return id;
}

static VAStatus create_buffer(VADriverContextP va, VAContextID context, VABufferType type, unsigned size,
                              unsigned elements, void *data, VABufferID *id) {
    (void)context;
    VAStatus status = fault_status(device_of(va), "buffer", NULL);
    if (status) return status;
    struct buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) return VA_STATUS_ERROR_ALLOCATION_FAILED;
    buffer->type = type, buffer->size = size, buffer->elements = elements;
    if (!(buffer->data = calloc(elements ? elements : 1, size + 64))) {
        buffer_free(buffer);
        return VA_STATUS_ERROR_ALLOCATION_FAILED;
    }
    if (data) memcpy(buffer->data, data, (size_t)size * elements);
    *id = buffer_add(device_of(va), buffer);
    return *id == VA_INVALID_ID ? VA_STATUS_ERROR_ALLOCATION_FAILED : VA_STATUS_SUCCESS;
}

static VAStatus buffer_set_num_elements(VADriverContextP va, VABufferID id, unsigned elements) {
    struct buffer *buffer = objects_get(device_of(va), KIND_BUFFER, id);
    if (!buffer) return VA_STATUS_ERROR_INVALID_BUFFER;
    if (elements > buffer->elements) return VA_STATUS_ERROR_MAX_NUM_EXCEEDED;
    buffer->elements = elements;
    return VA_STATUS_SUCCESS;
}

static VAStatus sync_buffer(VADriverContextP va, VABufferID id, uint64_t timeout) {
    (void)timeout;
    struct buffer *buffer = objects_get(device_of(va), KIND_BUFFER, id);
    if (!buffer) return VA_STATUS_ERROR_INVALID_BUFFER;
    VAStatus status = fault_status(device_of(va), "sync", "encode");
    if (!status) clock_wait(device_of(va), buffer->ready);
    return status;
}

static VAStatus map_buffer(VADriverContextP va, VABufferID id, void **data) {
    struct buffer *buffer = objects_get(device_of(va), KIND_BUFFER, id);
    if (!buffer) return VA_STATUS_ERROR_INVALID_BUFFER;
    VAStatus status = fault_status(device_of(va), "map", buffer->type == VAEncCodedBufferType ? "encode" : NULL);
    if (status) return status;
    *data = buffer->data;
    if (buffer->type == VAEncCodedBufferType) {
        clock_wait(device_of(va), buffer->ready);
        buffer->segment = (VACodedBufferSegment){.size = buffer->filled, .buf = buffer->data};
        *data = &buffer->segment;
    } else if (buffer->surface) {
        clock_wait(device_of(va), buffer->surface->ready);
    }
    return VA_STATUS_SUCCESS;
}

static VAStatus unmap_buffer(VADriverContextP va, VABufferID id) {
    return objects_get(device_of(va), KIND_BUFFER, id) ? VA_STATUS_SUCCESS : VA_STATUS_ERROR_INVALID_BUFFER;
}

static VAStatus destroy_buffer(VADriverContextP va, VABufferID id) {
    struct buffer *buffer = objects_take(device_of(va), KIND_BUFFER, id);
    if (!buffer) return VA_STATUS_ERROR_INVALID_BUFFER;
    buffer_free(buffer);
    return VA_STATUS_SUCCESS;
}

static VAStatus buffer_info(VADriverContextP va, VABufferID id, VABufferType *type, unsigned *size,
                            unsigned *elements) {
    struct buffer *buffer = objects_get(device_of(va), KIND_BUFFER, id);
    if (!buffer) return VA_STATUS_ERROR_INVALID_BUFFER;
    *type = buffer->type, *size = buffer->size, *elements = buffer->elements;
    return VA_STATUS_SUCCESS;
}

/* ---- images ---- */

static VAStatus query_image_formats(VADriverContextP va, VAImageFormat *list, int *count) {
    (void)va;
    memcpy(list, image_formats(count), sizeof formats);
    return VA_STATUS_SUCCESS;
}

static VAStatus image_new(struct device *device, const struct picture *picture, uint8_t *memory, size_t size,
                          struct surface *surface, VAImage *va_image) {
    struct image *image = calloc(1, sizeof *image);
    struct buffer *buffer = calloc(1, sizeof *buffer);
    if (!image || !buffer) {
        free(image);
        free(buffer);
        if (!surface) free(memory);
        return VA_STATUS_ERROR_ALLOCATION_FAILED;
    }
    *buffer = (struct buffer){.type = VAImageBufferType,
                              .size = (unsigned)size,
                              .elements = 1,
                              .data = memory,
                              .borrowed = surface != NULL,
                              .surface = surface};
    VAImage *is = &image->va;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i].fourcc == picture->fourcc) is->format = formats[i];
    is->width = (uint16_t)picture->width, is->height = (uint16_t)picture->height;
    is->data_size = (uint32_t)size, is->num_planes = (uint32_t)picture->planes;
    for (int i = 0; i < picture->planes; i++) {
        is->pitches[i] = (uint32_t)picture->stride[i];
        is->offsets[i] = (uint32_t)(picture->data[i] - memory);
    }
    is->buf = buffer_add(device, buffer);
    is->image_id = objects_add(device, KIND_IMAGE, image);
    *va_image = *is;
    if (is->image_id == VA_INVALID_ID) free(image);
    return VA_STATUS_SUCCESS;
}

static VAStatus create_image(VADriverContextP va, VAImageFormat *format, int width, int height, VAImage *image) {
    struct picture picture;
    size_t size = picture_layout(&picture, format->fourcc, width, height, NULL);
    if (!size) return VA_STATUS_ERROR_INVALID_IMAGE_FORMAT;
    uint8_t *memory = calloc(1, size + 64);
    if (!memory) return VA_STATUS_ERROR_ALLOCATION_FAILED;
    picture_layout(&picture, format->fourcc, width, height, memory);
    return image_new(device_of(va), &picture, memory, size, NULL, image);
}

static VAStatus derive_image(VADriverContextP va, VASurfaceID id, VAImage *image) {
    struct device *device = device_of(va);
    struct surface *surface = objects_get(device, KIND_SURFACE, id);
    if (!surface) return VA_STATUS_ERROR_INVALID_SURFACE;
    if (!device_personality(device).derive_image) return VA_STATUS_ERROR_OPERATION_FAILED;
    VAStatus status = fault_status(device, "image", NULL);
    if (status) return status;
    return image_new(device, &surface->picture, surface->memory, surface->size, surface, image);
}

static VAStatus destroy_image(VADriverContextP va, VAImageID id) {
    struct image *image = objects_take(device_of(va), KIND_IMAGE, id);
    if (!image) return VA_STATUS_ERROR_INVALID_IMAGE;
    destroy_buffer(va, image->va.buf);
    free(image);
    return VA_STATUS_SUCCESS;
}

static bool picture_of_image(struct device *device, VAImageID id, struct picture *picture) {
    struct image *image = objects_get(device, KIND_IMAGE, id);
    struct buffer *buffer = image ? objects_get(device, KIND_BUFFER, image->va.buf) : NULL;
    return buffer && picture_layout(picture, image->va.format.fourcc, image->va.width, image->va.height, buffer->data);
}

static VAStatus get_image(VADriverContextP va, VASurfaceID id, int x, int y, unsigned width, unsigned height,
                          VAImageID image) {
    struct device *device = device_of(va);
    struct surface *surface = objects_get(device, KIND_SURFACE, id);
    struct picture to;
    if (!surface) return VA_STATUS_ERROR_INVALID_SURFACE;
    if (!picture_of_image(device, image, &to)) return VA_STATUS_ERROR_INVALID_IMAGE;
    VAStatus status = fault_status(device, "image", NULL);
    if (status) return status;
    if (x || y || (int)width > surface->picture.width || (int)height > surface->picture.height ||
        (int)width > to.width || (int)height > to.height)
        return VA_STATUS_ERROR_INVALID_PARAMETER;
    clock_wait(device, surface->ready);
    struct picture from = surface->picture;
    from.width = to.width = (int)width, from.height = to.height = (int)height;
    return picture_convert(&from, &to) ? VA_STATUS_SUCCESS : VA_STATUS_ERROR_OPERATION_FAILED;
}

static VAStatus put_image(VADriverContextP va, VASurfaceID id, VAImageID image, int from_x, int from_y,
                          unsigned from_width, unsigned from_height, int x, int y, unsigned width, unsigned height) {
    struct device *device = device_of(va);
    struct surface *surface = objects_get(device, KIND_SURFACE, id);
    struct picture from;
    if (!surface) return VA_STATUS_ERROR_INVALID_SURFACE;
    if (!picture_of_image(device, image, &from)) return VA_STATUS_ERROR_INVALID_IMAGE;
    VAStatus status = fault_status(device, "image", NULL);
    if (status) return status;
    struct picture to = surface->picture;
    if (x || y || from_x || from_y || (int)from_width > from.width || (int)from_height > from.height ||
        (int)width > to.width || (int)height > to.height)
        return VA_STATUS_ERROR_INVALID_PARAMETER;
    from.width = (int)from_width, from.height = (int)from_height, to.width = (int)width, to.height = (int)height;
    return picture_convert(&from, &to) ? VA_STATUS_SUCCESS : VA_STATUS_ERROR_OPERATION_FAILED;
}

void objects_close(struct device *device) {
    for (unsigned kind = 0; kind < KINDS; kind++) {
        void **items = device->objects->kinds[kind].items;
        for (unsigned i = 0; i < device->objects->kinds[kind].size; i++) {
            if (kind == KIND_SURFACE) surface_free(device, items[i]);
            else if (kind == KIND_BUFFER) buffer_free(items[i]);
            else if (kind == KIND_CONTEXT) context_free(device, items[i]);
            else free(items[i]);
        }
        free(items);
    }
    free(device->objects);
}

void objects_table(struct VADriverVTable *table) {
    table->vaCreateSurfaces = create_surfaces;
    table->vaCreateSurfaces2 = create_surfaces2;
    table->vaDestroySurfaces = destroy_surfaces;
    table->vaSyncSurface = sync_surface;
    table->vaQuerySurfaceStatus = query_surface_status;
    table->vaCreateBuffer = create_buffer;
    table->vaBufferSetNumElements = buffer_set_num_elements;
    table->vaMapBuffer = map_buffer;
    table->vaUnmapBuffer = unmap_buffer;
    table->vaDestroyBuffer = destroy_buffer;
    table->vaBufferInfo = buffer_info;
    table->vaSyncBuffer = sync_buffer;
    table->vaQueryImageFormats = query_image_formats;
    table->vaCreateImage = create_image;
    table->vaDeriveImage = derive_image;
    table->vaDestroyImage = destroy_image;
    table->vaGetImage = get_image;
    table->vaPutImage = put_image;
}
