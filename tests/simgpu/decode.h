/* What the decoders share: Annex B in, pixels out. */
#ifndef SIMGPU_DECODE_H
#define SIMGPU_DECODE_H

#include <libavcodec/avcodec.h>

#include "simgpu.h"

enum { MAX_SLICES = 600 };

struct slice {
    size_t offset, size; /* in the stream; without start code */
    uint32_t counts[2];  /* H.264: reference pictures, minus one */
    VASliceParameterBufferHEVC hevc;
};

struct decoder {
    enum codec codec;
    AVCodecContext *av;
    AVFrame *current, *output; /* the buffer of the picture that is being decoded */
    AVPacket *packet;
    uint8_t *stream; /* the slices of this picture */
    size_t used, room;
    struct slice slices[MAX_SLICES];
    int slice_count;
    struct buffer parameters; /* a copy of the slice parameters that wait for their data */
    union {
        VAPictureParameterBufferH264 h264;
        VAPictureParameterBufferHEVC hevc;
    } picture;
    union {
        VAIQMatrixBufferH264 h264;
        VAIQMatrixBufferHEVC hevc;
    } matrix;
    bool has_matrix;
};

/* Writes the picture as a stream that stands on its own: parameter sets and slices. Gives its size, 0 if it cannot. */
size_t h264_assemble(const struct decoder *decoder, uint8_t *to, size_t room);
size_t hevc_assemble(const struct decoder *decoder, uint8_t *to, size_t room);

/* Ends the RBSP, escapes it and writes it with its start code; `bits` starts with the NAL unit's header. */
size_t finish_nal(struct bits *bits, uint8_t *to);

#endif
