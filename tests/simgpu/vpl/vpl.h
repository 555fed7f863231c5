/* A oneVPL runtime on the software GPU: what its files share.
 *
 * describe.c  what the dispatcher (libvpl.so.2) is told of the devices
 * session.c   sessions, the device behind them, surfaces, sync points
 * encode.c, decode.c, process.c  the three components of a session
 * missing.c   what the dispatcher wants to be there and nobody here calls
 *
 * The runtime is part of the driver's library, which the dispatcher opens under another name: so it shares the
 * driver's open devices, and its components are contexts of the driver, with their faults, sessions and engines.
 *
 * oneVPL's headers name their descriptions of codecs `struct decoder` and `struct encoder`, like the driver's own: only
 * pointers to the latter may be used here.
 *
 * No exported function is called from in here: libvpl.so.2 exports the same names and would take the call. */
#ifndef SIMGPU_VPL_H
#define SIMGPU_VPL_H

#include <vpl/mfx.h>

#include "../simgpu.h"

#define EXPORT __attribute__((visibility("default")))

enum { API_MAJOR = 2, API_MINOR = 14 }; /* from 2.9 on ffmpeg's pools of surfaces grow as they need */
enum { INTEL = 0x8086, POINTS = 256 };

struct _mfxSyncPoint {
    int64_t ready;
    const char *part;    /* "encode", "decode", "process", "copy" */
    mfxBitstream *coded; /* of an encoder: what its failure empties */
};

struct component { /* a context of the driver, and what it was made for */
    VAConfigID config;
    VAContextID id;
    struct context *context; /* NULL: not open */
    mfxVideoParam param;
};

struct coder;  /* encode.c */
struct reader; /* decode.c */
struct frames; /* process.c */

struct _mfxSession {
    mfxHDL display;
    VADriverContextP va;
    struct device *device; /* NULL until SetHandle */
    mfxFrameAllocator allocator;
    struct component encode, decode, process;
    struct coder *coder;
    struct reader *reader;
    struct frames *frames;
    struct _mfxSyncPoint points[POINTS]; /* the oldest is used again: not every one is waited for */
    unsigned next_point;
};

/* ---- session.c ---- */

bool session_lives(mfxSession session); /* has a device, and that is still open */
mfxStatus session_fault(mfxSession session, const char *call, const char *part, enum fate *fate);
mfxSyncPoint session_point(mfxSession session, int64_t ready, const char *part, mfxBitstream *coded);
/* The pixels of a surface, in its memory or the device's; `surface` is NULL for the former. */
mfxStatus session_picture(mfxSession session, const mfxFrameSurface1 *from, struct picture *picture,
                          struct surface **surface);

mfxStatus component_open(mfxSession session, struct component *component, const mfxVideoParam *param, VAProfile profile,
                         VAEntrypoint entrypoint, uint32_t rate_control);
void component_close(mfxSession session, struct component *component);

void *find_buffer(const mfxVideoParam *param, mfxU32 id); /* an extension buffer, or NULL */
uint32_t fourcc_of(mfxU32 mfx);                           /* VA-API's name of a format, 0: unknown */

/* ---- the components ---- */

void encode_close(mfxSession session);
void decode_close(mfxSession session);
void process_close(mfxSession session);

#endif
