/* A graphics processor in software: what the files of the driver share.
 *
 * driver.c       the entry point, the table of VA-API calls, profiles, configurations, contexts, pictures
 * objects.c      handles to things, surfaces, buffers, images
 * decode.c       coded pictures to pixels        decode_h264.c, decode_hevc.c  the headers that VA-API does not pass on
 * encode.c       pictures to H.264 and HEVC      headers.c  what the application's packed headers say
 * encode_frames.c  and to VP9 and AV1            reorder.c  the order in which H.264's are shown
 * vpp.c          scaling, cropping, conversion, deinterlacing, rotation, overlay     tonemap.c  HDR10 to SDR
 * vpl/           the oneVPL runtime: another door to the same decoders, encoders and engines
 * personality.c  the configuration file          faults.c  the faults it asks for
 * clock.c        engines, time, sessions, memory and counters, shared by every process
 * shim.c         a preload library that makes libdrm take a regular file for a render node
 */
#ifndef SIMGPU_H
#define SIMGPU_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <va/va.h>
#include <va/va_backend.h>
#include <va/va_backend_vpp.h>

enum { MAX_FAULTS = 16, MAX_ENGINES = 16, PATH_SIZE = 4096, QUEUE_DEPTH = 4, MAX_PLANES = 3 };

/* ---- personality.c ---- */

enum action { ACT_STATUS, ACT_HANG, ACT_SLOW, ACT_GREEN, ACT_TRUNCATE, ACT_DROP, ACT_VANISH, ACT_SEGFAULT };

struct fault {
    char where[32]; /* "encode", "context.decode" */
    enum action action;
    int number;    /* a status of VA-API or oneVPL, or milliseconds */
    uint64_t at;   /* the first call that is hit, from 1 */
    bool once;     /* that call only, else it and all later ones */
    bool device;   /* calls of every client are counted together */
    uint64_t hash; /* of the line: a new line counts from nothing */
};

enum codec { CODEC_NONE, CODEC_H264, CODEC_HEVC, CODEC_VP9, CODEC_AV1, CODECS };

struct personality {
    char vendor[128];
    char kernel_driver[32];
    char pdev[32];
    char preset_h264[32], preset_hevc[32]; /* of libx264 and libx265: what the quality costs the CPU */
    char state[PATH_SIZE], proc[PATH_SIZE];
    uint32_t pci_id;
    uint32_t rate_control;   /* VA_RC_* */
    unsigned decode, encode; /* 1 << enum codec */
    bool ten_bit, vpp, overlay, tonemap, b_frames, vpl;
    bool entry_slice, entry_lp;
    bool packed_headers, derive_image, sync_buffer, broken;
    int max_width, max_height, max_sessions;
    uint64_t memory; /* bytes, 0: as much as there is */
    int engines, vpp_engines;
    double encode_rate, decode_rate, vpp_rate; /* pixels a second and engine, 0: as fast as the CPU */
    int setup_ms;
};

struct config {
    struct personality is;
    struct fault faults[MAX_FAULTS];
    int fault_count;
    uint64_t written; /* nanoseconds since 1970 */
};

/* The configuration file of the node with this path; false if it has none. */
bool config_path(const char *node, char *path, size_t size);
void config_default(struct config *config);
/* False when the file cannot be read. Keys that are not known are named on stderr. */
bool config_read(const char *path, struct config *config);

/* ---- the device ---- */

struct shared;
struct object_table;

struct device {
    pthread_mutex_t lock; /* the tables of objects, the configuration */
    char node[PATH_SIZE];
    char config_file[PATH_SIZE];
    struct stat config_stat;
    struct config config;
    char vendor[sizeof((struct personality *)0)->vendor]; /* as it was when the device was opened */
    struct object_table *objects;
    uint64_t fault_calls[MAX_FAULTS], fault_hashes[MAX_FAULTS];

    pthread_mutex_t clock_lock;
    struct shared *shared;
    char client_file[PATH_SIZE + 64], proc[PATH_SIZE + 64];
    int state_fd, client_fd, slot, drm_fd;
    uint64_t client;
    int64_t busy[2];
    pid_t process;
    struct device *next; /* of those that are open */
};

struct personality device_personality(struct device *device); /* as the file says now */
bool device_is_open(const struct device *device);             /* driver.c */

/* ---- faults.c ---- */

enum fate { FATE_FINE, FATE_FAIL, FATE_GREEN, FATE_TRUNCATE, FATE_DROP };

/* Counts a call and says what becomes of it. `part` is "encode", "decode", "process" or NULL. */
enum fate fault_at(struct device *device, const char *call, const char *part, VAStatus *status);
/* The same for calls that can only fail or not. */
VAStatus fault_status(struct device *device, const char *call, const char *part);

/* ---- clock.c ---- */

enum engine { ENGINE_VIDEO, ENGINE_ENHANCE };
enum work { WORK_DECODE, WORK_ENCODE, WORK_PROCESS };

struct line { /* what a context has in the queue */
    int64_t recent[QUEUE_DEPTH];
    unsigned next;
    int64_t last;
};

bool clock_open(struct device *device); /* true or false: clock_close ends it */
void clock_close(struct device *device);
void clock_leave(struct device *device); /* only what others see of it ends */
int64_t clock_now(void);
void clock_wait(struct device *device, int64_t until);
/* Books an engine for a picture; gives the time at which its result is ready. `after`: when its input is. */
int64_t clock_book(struct device *device, struct line *line, enum work work, int64_t pixels, int64_t after);
bool clock_session(struct device *device, enum work work, int change); /* false: as many as there may be */
bool clock_memory(struct device *device, int64_t change);              /* false: there is no more */
uint64_t clock_count_fault(struct device *device, int index, uint64_t hash);
void clock_vanish(struct device *device);
bool clock_vanished(struct device *device);

/* ---- objects.c ---- */

enum kind { KIND_CONFIG, KIND_CONTEXT, KIND_SURFACE, KIND_BUFFER, KIND_IMAGE, KINDS };

struct picture { /* pixels somewhere */
    uint32_t fourcc;
    int width, height, planes;
    uint8_t *data[MAX_PLANES];
    int stride[MAX_PLANES];
};

struct surface {
    struct picture picture;
    uint8_t *memory;
    size_t size;
    _Atomic int64_t ready;
};

struct buffer {
    VABufferType type;
    unsigned size, elements;
    uint8_t *data;
    bool borrowed;           /* data belongs to a surface */
    struct surface *surface; /* that surface */
    VACodedBufferSegment segment;
    _Atomic int64_t ready;
    unsigned filled;
};

struct image {
    VAImage va;
};

struct va_config {
    VAProfile profile;
    VAEntrypoint entrypoint;
    uint32_t rate_control, format;
};

struct decoder;
struct encoder;
struct processor;

struct context {
    struct va_config config;
    enum work work;
    int width, height;
    struct surface *target;
    struct line line;
    struct decoder *decoder;
    struct encoder *encoder;
    struct processor *processor;
    bool counted;
};

bool objects_open(struct device *device);
void objects_close(struct device *device);                                 /* destroys what was left */
unsigned objects_add(struct device *device, enum kind kind, void *object); /* VA_INVALID_ID: no memory */
void *objects_get(struct device *device, enum kind kind, unsigned id);
void *objects_take(struct device *device, enum kind kind, unsigned id);

enum codec codec_of(VAProfile profile); /* driver.c */
bool is_ten_bit(VAProfile profile);
void context_free(struct device *device, struct context *context); /* driver.c */

/* Where the planes of a picture lie in one piece of memory; gives its size, 0 for a format that is not known. */
size_t picture_layout(struct picture *picture, uint32_t fourcc, int width, int height, uint8_t *memory);
void picture_blank(const struct picture *picture); /* zeros: green */
const VAImageFormat *image_formats(int *count);
void objects_table(struct VADriverVTable *table);

/* ---- decode.c, decode_h264.c, encode.c, headers.c, vpp.c ---- */

struct bits { /* a writer or a reader of bits, without emulation prevention */
    uint8_t *data;
    size_t size, position; /* bytes, bits */
};

void put_bits(struct bits *bits, unsigned count, uint32_t value);
void put_ue(struct bits *bits, uint32_t value);
void put_se(struct bits *bits, int32_t value);
uint32_t get_bits(struct bits *bits, unsigned count); /* zeros after the end */
uint32_t get_ue(struct bits *bits);
int32_t get_se(struct bits *bits);
size_t unescape(const uint8_t *from, size_t size, uint8_t *to, size_t room); /* emulation prevention out */
size_t escape(const uint8_t *from, size_t size, uint8_t *to);                /* and in: room for size * 3 / 2 + 2 */
/* The next NAL unit of an Annex B stream, without its start code; NULL at the end. */
const uint8_t *next_nal(const uint8_t **from, const uint8_t *end, size_t *size);

struct reorder {
    unsigned number_bits; /* of frame_num */
};

/* An H.264 sequence parameter set or slice whose pictures are not shown in the order in which they are coded. Gives the
 * size, at most size * 3 / 2 + 128. */
size_t reorder_sequence(struct reorder *reorder, const uint8_t *nal, size_t size, uint8_t *to);
size_t reorder_slice(const struct reorder *reorder, int order, const uint8_t *nal, size_t size, uint8_t *to);

struct decoder *decoder_open(const struct context *context);
void decoder_close(struct decoder *decoder);
VAStatus decoder_render(struct decoder *decoder, const struct buffer *buffer);
VAStatus decoder_end(struct decoder *decoder, struct surface *target);

struct encoder *encoder_open(const struct context *context, const struct personality *is);
void encoder_close(struct encoder *encoder);
VAStatus encoder_render(struct encoder *encoder, const struct buffer *buffer);
VAStatus encoder_end(struct device *device, struct encoder *encoder, struct surface *input, enum fate fate,
                     int64_t ready);

struct processor *processor_open(void);
void processor_close(struct processor *processor);
VAStatus processor_render(struct processor *processor, const struct buffer *buffer);
VAStatus processor_end(struct device *device, struct processor *processor, struct surface *target,
                       int64_t (*book)(void *, int64_t after), void *booking);
/* One picture into another, whatever their formats and sizes. */
bool picture_convert(const struct picture *from, const struct picture *to);
/* HDR10 whose brightest is `nits` to SDR; both are NV12 or P010 and of one size. */
bool tone_map(const struct picture *from, const struct picture *to, float nits);
/* One picture into another with the region, turn and colours that are asked for and, not NULL, the filters. */
bool picture_process(const VAProcPipelineParameterBuffer *pipeline,
                     const VAProcFilterParameterBufferDeinterlacing *filter,
                     const VAProcFilterParameterBufferHDRToneMapping *tones, const struct picture *from,
                     const struct picture *to);
void vpp_table(struct VADriverVTableVPP *table);

static inline struct device *device_of(VADriverContextP va) { return va->pDriverData; }

#endif
